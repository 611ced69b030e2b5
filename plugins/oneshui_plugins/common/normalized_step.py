"""What methods of one normalised step share: the step's length, the photos that it is for, and choosing the length on simulated requests.

A method derives from `OneStep` and says in which direction the step goes. `prepare` is optional and chooses the length on simulated
requests; without it the default length is taken.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from oneshui_hf.methods import Context, Cost, DataAccess, Method, Needs, StepOptions, UsageError, generator

if TYPE_CHECKING:
    import torch
    from torch import nn

    from oneshui_hf.methods import Artefact, Simulated

    Weights = dict[str, torch.Tensor]

DEFAULT_LENGTH = 1e-4  # share of the model's norm, where none was prepared


class OneStep(Method[StepOptions]):
    """One normalised step of given length on the photos handed in."""

    title: ClassVar[str]  # the method's name in a sentence
    needs = Needs(prepare=frozenset({"train", "val"}), apply=frozenset({"support"}))
    options = StepOptions
    prepares = "optional"

    @abstractmethod
    def direction(self, model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, draws: torch.Generator, context: Context) -> Weights:
        """Return the unit direction of the step.

        Args:
            model: The original model.
            pixels: The photos (n, 3, S, S).
            labels: Their labels, (n, K) or (n,).
            draws: For what the method leaves to chance.
            context: Of the call.
        """

    def prepare(self, model: nn.Module, data: DataAccess, options: StepOptions, context: Context) -> Artefact:
        """Choose the length on simulated requests."""
        if options.calibration == 0:
            raise UsageError(f"{self.title} prepares nothing but its length, so --calibration must be at least 1.")
        from oneshui_hf.methods import Artefact, choose_length, norm, parameters

        def direction(request: Simulated) -> Weights:
            pixels, labels = request.support_set.batch(request.support, context.device)
            return self.direction(model, pixels, labels, generator(context.seed, "step", *request.people), context)

        length, rows = choose_length(model, data, direction, options, context)
        return Artefact(values={"length": length / norm(parameters(model)).item()}, report={"calibration": rows})

    def cost(self, model: nn.Module, data: DataAccess, options: StepOptions, context: Context) -> Cost:
        """Return what trying the lengths takes."""
        from oneshui_hf.methods import length_cost

        return length_cost(data, options, context)

    def apply(
        self,
        model: nn.Module,
        data: DataAccess,
        artefact: Artefact | None,
        options: StepOptions,
        context: Context,
    ) -> nn.Module:
        """Return theta + length * d, d the unit direction for the photos."""
        from oneshui_hf.methods import moved, norm, parameters

        request = data.support
        prepared = artefact.values["length"] if artefact else DEFAULT_LENGTH
        share = prepared if options.length is None else options.length
        length = share * norm(parameters(model)).item()
        context.report |= {"step_length": length, "step_share": share}
        return moved(model, self.direction(model, request.pixels, request.labels, generator(context.seed, "step"), context), length)


def gradient(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, context: Context) -> Weights:
    """Return the gradient of the mean loss on the photos, of the model in evaluation mode."""
    import torch

    from oneshui_hf.methods import losses

    still = copy.deepcopy(model).eval()
    named = dict(still.named_parameters())
    loss = losses(still(pixel_values=pixels).logits, labels, context.task.kind).mean()
    parts = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: part for name, part in zip(named, parts, strict=True) if part is not None}
