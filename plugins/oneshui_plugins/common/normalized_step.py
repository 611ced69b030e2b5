"""Base class of methods that take one normalised step on the support images.

It provides the step's length, which `prepare` selects on simulated requests. `prepare` is optional; without it the default length is used.
A method derives from `NormalizedStepMethod` and defines the direction of the step.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from oneshui_hf.methods import Context, Cost, DataAccess, Method, Needs, StepOptions, UsageError, generator

if TYPE_CHECKING:
    import torch
    from torch import nn

    from oneshui_hf.methods import Artefact, SimulatedRequest, Weights

DEFAULT_LENGTH = 1e-4  # share of the model's norm, used if no length was prepared


class NormalizedStepMethod(Method[StepOptions]):
    """One normalised step of given length on the support images."""

    title: ClassVar[str]  # the method's name in messages
    needs = Needs(prepare=frozenset({"train", "val"}), apply=frozenset({"support"}))
    options = StepOptions
    prepares = "optional"

    @abstractmethod
    def direction(self, model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, rng: torch.Generator, context: Context) -> Weights:
        """Return the unit direction of the step.

        Args:
            model: The original model.
            pixels: The support images (n, 3, S, S).
            labels: Their labels, (n, K) or (n,).
            rng: Source of the method's randomness.
            context: The context of the call.
        """

    def prepare(self, model: nn.Module, data: DataAccess, options: StepOptions, context: Context) -> Artefact:
        """Select the step length on simulated requests."""
        if options.calibration == 0:
            raise UsageError(f"{self.title} prepares only its step length, so --calibration must be at least 1.")
        from oneshui_hf.methods import Artefact, choose_length, norm, parameters

        def direction(request: SimulatedRequest) -> Weights:
            pixels, labels = request.support_set.batch(request.support, context.device)
            return self.direction(model, pixels, labels, generator(context.seed, "step", *request.people), context)

        length, rows = choose_length(model, data, direction, options, context)
        return Artefact(values={"length": length / norm(parameters(model)).item()}, report={"calibration": rows})

    def cost(self, model: nn.Module, data: DataAccess, options: StepOptions, context: Context) -> Cost:
        """Return the cost of selecting the length."""
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
        """Return theta + length * d, with d the unit direction for the support images."""
        from oneshui_hf.methods import displaced, norm, parameters

        request = data.support
        prepared = artefact.number("length") if artefact else DEFAULT_LENGTH
        share = prepared if options.length is None else options.length
        length = share * norm(parameters(model)).item()
        context.report |= {"step_length": length, "step_share": share}
        return displaced(model, self.direction(model, request.pixels, request.labels, generator(context.seed, "step"), context), length)


def mean_loss_gradient(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, context: Context) -> Weights:
    """Return the gradient of the mean loss on the support images, with the model in evaluation mode."""
    import torch

    from oneshui_hf.methods import losses

    frozen = copy.deepcopy(model).eval()
    named = dict(frozen.named_parameters())
    loss = losses(frozen(pixel_values=pixels).logits, labels, context.task.kind).mean()
    parts = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: part for name, part in zip(named, parts, strict=True) if part is not None}
