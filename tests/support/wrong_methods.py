"""Methods that keep the plugin contract, and methods that break one guarantee each; the conformance kit must report exactly that one."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from oneshui_hf.methods import Artefact, Context, DataAccess, Method, Needs, generator, losses, option, seeded
from oneshui_hf.options import names


@dataclass(frozen=True)
class Options:
    rate: float = option(0.05, "Step size.", at="apply")


class Correct(Method[Options]):
    """A step of gradient ascent on the support images. Keeps the contract."""

    summary = "a correct method"
    paper = "-"
    needs = Needs(apply=frozenset({"support"}))
    options = Options

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        request = data.support
        return ascend(copy.deepcopy(model), request.pixels, request.labels, options.rate, context)


def ascend(model: Any, pixels: torch.Tensor, labels: torch.Tensor, rate: float, context: Context) -> Any:
    loss = losses(model(pixel_values=pixels).logits, labels, context.task.kind).mean()
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(named.values(), gradients, strict=True):
            if gradient is not None:
                parameter.add_(gradient, alpha=rate)
    return model


class FromScratch(Correct):
    """Trains a newly initialised model on the retain set. Keeps the contract."""

    needs = Needs(apply=frozenset({"retain"}))
    stochastic = True
    from_scratch = True

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        with seeded(context.seed, "weights"):
            new = self.initialized(model).eval()
        pixels, labels = data.retain.batch(torch.arange(len(data.retain)))
        for _ in range(3):
            ascend(new, pixels, labels, -options.rate, context)
        return new

    @staticmethod
    def initialized(model: Any) -> Any:
        return type(model)(copy.deepcopy(model.config))


class KeepsBackbone(FromScratch):
    """Resets direct submodules only: the head is new, the backbone keeps its weights."""

    @staticmethod
    def initialized(model: Any) -> Any:
        new = copy.deepcopy(model)
        for child in new.children():
            if hasattr(child, "reset_parameters"):
                child.reset_parameters()
        return new


class ForgetsNothing(Correct):
    """Returns a copy of the model."""

    needs = Needs(apply=frozenset({"retain", "forget"}))

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        return copy.deepcopy(model)


class UpdatesTeacher(Correct):
    """Distils from the student itself, so the teacher is updated with it."""

    uses_teacher = True

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        student = copy.deepcopy(model)
        teacher, request = student, data.support
        for _ in range(3):
            with torch.no_grad():
                target = teacher(pixel_values=request.pixels).logits
            loss = (student(pixel_values=request.pixels).logits - target).square().mean()
            torch.autograd.grad(loss, list(student.parameters()), allow_unused=True)
            ascend(student, request.pixels, request.labels, options.rate, context)
        return student


class UpdatesInPlace(Correct):
    """Updates the input model."""

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        request = data.support
        return copy.deepcopy(ascend(model, request.pixels, request.labels, options.rate, context))


class SeedsGlobally(Correct):
    """Seeds torch's global random state."""

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        torch.manual_seed(0)
        request = data.support
        noisy = request.pixels + 0.1 * torch.randn(request.pixels.shape)
        return ascend(copy.deepcopy(model), noisy, request.labels, options.rate, context)


class IgnoresUnknownOptions(Correct):
    """Ignores unknown options."""

    @classmethod
    def apply_options(cls, name: str, prepared: Any, given: Any) -> Any:
        return super().apply_options(name, prepared, {key: value for key, value in given.items() if key in names(cls.options)})


class ReadsUndeclaredData(Correct):
    """Reads training data, and suppresses the error."""

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        with contextlib.suppress(Exception):
            return copy.deepcopy(ascend(copy.deepcopy(model), *data.retain.batch(torch.arange(4)), options.rate, context))
        return super().apply(model, data, artefact, options, context)


class Unseeded(Correct):
    """Draws from the system's random source."""

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        rate = options.rate * (1 + float(np.random.default_rng().random()))
        request = data.support
        return ascend(copy.deepcopy(model), request.pixels, request.labels, rate, context)


class IgnoresSeed(Correct):
    """Uses a constant seed."""

    stochastic = True

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        request = data.support
        noisy = request.pixels + 0.1 * torch.randn(request.pixels.shape, generator=generator(0, "noise"))
        return ascend(copy.deepcopy(model), noisy, request.labels, options.rate, context)


class SavesIncompletely(Correct):
    """Prepares a value that is not saved with the artefact."""

    prepares = "required"
    needs = Needs(prepare=frozenset({"train"}), apply=frozenset({"support"}))

    def prepare(self, model: Any, data: DataAccess, options: Options, context: Context) -> Artefact:
        artefact = Artefact(values={"photos": len(data.train)})
        artefact.rate = 2.0  # type: ignore[attr-defined]
        return artefact

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        request = data.support
        return ascend(copy.deepcopy(model), request.pixels, request.labels, options.rate * getattr(artefact, "rate", 1.0), context)


@dataclass(frozen=True)
class ChunkOptions(Options):
    chunk: int = option(32, "Photos at a time.", minimum=1, at="apply")


class DependsOnChunkSize(Correct):
    """Takes one step per chunk."""

    options = ChunkOptions

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Any, context: Context) -> Any:
        new, request = copy.deepcopy(model), data.support
        size = min(options.chunk, 1 if options.chunk < 32 else 2)
        for start in range(0, len(request), size):
            chosen = slice(start, start + size)
            ascend(new, request.pixels[chosen], request.labels[chosen], options.rate, context)
        return new


class DependsOnProcesses(Correct):
    """Scales the step with the number of processes."""

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        request = data.support
        rate = options.rate * context.accelerator.num_processes
        return ascend(copy.deepcopy(model), request.pixels, request.labels, rate, context)


class NoSummary(Correct):
    """Has an empty summary."""

    summary = " "


CORRECT = ("Correct", "FromScratch")
BROKEN = {  # the test that each class must fail
    "KeepsBackbone": "test_model_trained_from_scratch_does_not_depend_on_input_weights",
    "ForgetsNothing": "test_loss_rises_on_forget_set_or_support_images",
    "UpdatesTeacher": "test_teacher_keeps_original_weights",
    "UpdatesInPlace": "test_input_model_is_unchanged",
    "SeedsGlobally": "test_global_state_is_unchanged",
    "IgnoresUnknownOptions": "test_unknown_option_is_refused",
    "ReadsUndeclaredData": "test_only_declared_data_is_read",
    "Unseeded": "test_same_seed_gives_same_bytes",
    "IgnoresSeed": "test_other_seed_gives_other_bytes",
    "SavesIncompletely": "test_saved_and_loaded_artefact_gives_same_model",
    "DependsOnChunkSize": "test_chunk_size_does_not_affect_result",
    "DependsOnProcesses": "test_two_processes_give_same_model",
    "NoSummary": "test_method_declares_its_metadata_and_valid_options",
}
