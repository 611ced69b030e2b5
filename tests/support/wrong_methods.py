"""Methods that keep every promise, and methods that break one each; the conformance kit must find exactly that one."""

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
    rate: float = option(0.05, "Size of the step.", at="apply")


class Right(Method[Options]):
    """A step up the loss of the support photos: keeps every promise."""

    summary = "a right method"
    paper = "-"
    needs = Needs(apply=frozenset({"support"}))
    options = Options

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        request = data.support
        return step(copy.deepcopy(model), request.pixels, request.labels, options.rate, context)


def step(model: Any, pixels: torch.Tensor, labels: torch.Tensor, rate: float, context: Context) -> Any:
    loss = losses(model(pixel_values=pixels).logits, labels, context.task.kind).mean()
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(named.values(), gradients, strict=True):
            if gradient is not None:
                parameter.add_(gradient, alpha=rate)
    return model


class Retrain(Right):
    """Trains a fresh model on the people who stay: keeps every promise, too."""

    needs = Needs(apply=frozenset({"retain"}))
    draws = True
    retrains = True

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        with seeded(context.seed, "weights"):
            new = self.fresh(model).eval()
        pixels, labels = data.retain.batch(torch.arange(len(data.retain)))
        for _ in range(3):
            step(new, pixels, labels, -options.rate, context)
        return new

    @staticmethod
    def fresh(model: Any) -> Any:
        return type(model)(copy.deepcopy(model.config))


class DirectChildren(Retrain):
    """Resets the modules that it finds, and looks one level deep: the head is fresh, the backbone is as it was."""

    @staticmethod
    def fresh(model: Any) -> Any:
        new = copy.deepcopy(model)
        for child in new.children():
            if hasattr(child, "reset_parameters"):
                child.reset_parameters()
        return new


class Scrub(Right):
    """Does nothing, under a great name."""

    needs = Needs(apply=frozenset({"retain", "forget"}))

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        return copy.deepcopy(model)


class OwnTeacher(Right):
    """Distils from itself: the teacher moves with the student."""

    distils = True

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        student = copy.deepcopy(model)
        teacher, request = student, data.support
        for _ in range(3):
            with torch.no_grad():
                target = teacher(pixel_values=request.pixels).logits
            loss = (student(pixel_values=request.pixels).logits - target).square().mean()
            torch.autograd.grad(loss, list(student.parameters()), allow_unused=True)
            step(student, request.pixels, request.labels, options.rate, context)
        return student


class InPlace(Right):
    """Edits the model that it was handed."""

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        request = data.support
        return copy.deepcopy(step(model, request.pixels, request.labels, options.rate, context))


class GlobalSeed(Right):
    """Seeds torch's global state, for itself and everybody else."""

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        torch.manual_seed(0)
        request = data.support
        noisy = request.pixels + 0.1 * torch.randn(request.pixels.shape)
        return step(copy.deepcopy(model), noisy, request.labels, options.rate, context)


class DroppedOption(Right):
    """Drops options that it does not know."""

    @classmethod
    def apply_options(cls, name: str, prepared: Any, given: Any) -> Any:
        return super().apply_options(name, prepared, {key: value for key, value in given.items() if key in names(cls.options)})


class SwallowedError(Right):
    """Reaches for the training data, and swallows the refusal."""

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        with contextlib.suppress(Exception):
            return copy.deepcopy(step(copy.deepcopy(model), *data.retain.batch(torch.arange(4)), options.rate, context))
        return super().apply(model, data, artefact, options, context)


class Unseeded(Right):
    """Draws from the clock of the machine."""

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        rate = options.rate * (1 + float(np.random.default_rng().random()))
        request = data.support
        return step(copy.deepcopy(model), request.pixels, request.labels, rate, context)


class OneSeed(Right):
    """Draws from a seed of its own, whatever it is told."""

    draws = True

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        request = data.support
        noisy = request.pixels + 0.1 * torch.randn(request.pixels.shape, generator=generator(0, "noise"))
        return step(copy.deepcopy(model), noisy, request.labels, options.rate, context)


class Forgetful(Right):
    """Keeps what it prepared where saving does not find it."""

    prepares = "required"
    needs = Needs(prepare=frozenset({"train"}), apply=frozenset({"support"}))

    def prepare(self, model: Any, data: DataAccess, options: Options, context: Context) -> Artefact:
        artefact = Artefact(values={"photos": len(data.train)})
        artefact.rate = 2.0  # type: ignore[attr-defined]
        return artefact

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        request = data.support
        return step(copy.deepcopy(model), request.pixels, request.labels, options.rate * getattr(artefact, "rate", 1.0), context)


@dataclass(frozen=True)
class ChunkOptions(Options):
    chunk: int = option(32, "Photos at a time.", minimum=1, at="apply")


class BatchMean(Right):
    """Squares the mean gradient of a chunk where the photos' own were meant."""

    options = ChunkOptions

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Any, context: Context) -> Any:
        new, request = copy.deepcopy(model), data.support
        size = min(options.chunk, 1 if options.chunk < 32 else 2)
        for start in range(0, len(request), size):
            chosen = slice(start, start + size)
            step(new, request.pixels[chosen], request.labels[chosen], options.rate, context)
        return new


class OneProcess(Right):
    """Each process takes its own way."""

    def apply(self, model: Any, data: DataAccess, artefact: Artefact | None, options: Options, context: Context) -> Any:
        request = data.support
        rate = options.rate * context.accelerator.num_processes
        return step(copy.deepcopy(model), request.pixels, request.labels, rate, context)


class Nameless(Right):
    """Does not say what it is."""

    summary = " "


RIGHT = ("Right", "Retrain")
BROKEN = {
    "DirectChildren": "test_a_retrained_model_keeps_nothing_of_the_one_handed_in",
    "Scrub": "test_forgetting_moves_the_loss",
    "OwnTeacher": "test_the_teacher_is_not_the_student",
    "InPlace": "test_the_model_handed_in_stays_as_it_is",
    "GlobalSeed": "test_nothing_global_is_changed",
    "DroppedOption": "test_an_unknown_option_is_refused",
    "SwallowedError": "test_only_declared_data_is_read",
    "Unseeded": "test_the_same_seed_gives_the_same_bytes",
    "OneSeed": "test_another_seed_gives_other_bytes",
    "Forgetful": "test_an_artefact_saved_and_loaded_gives_the_same",
    "BatchMean": "test_memory_is_no_matter_of_results",
    "OneProcess": "test_two_processes_give_the_same",
    "Nameless": "test_the_method_says_what_it_is",
}
