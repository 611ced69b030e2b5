"""Gradient descent of a copy of the model on the support images, until a method's own stopping rule holds.

    def gradient(new):                       # at the current weights; None once the method's goal is reached
        ...
    return descend(model, gradient, options.steps, options.lr, context)

The copy is in evaluation mode: dropout is off, and the running statistics of BatchNorm do not change. Each process takes the same steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oneshui_hf.methods import Context, OneshuiError, option

if TYPE_CHECKING:
    import torch
    from torch import nn

    from oneshui_hf.methods import Weights


@dataclass(frozen=True)
class DescentOptions:
    """Options of the methods whose learning rate is the factor of the gradient itself."""

    steps: int = option(10, "Most gradient steps; fewer are taken once the goal is reached.", minimum=1, at="apply", search=(1, 30))
    lr: float = option(1e-3, "Factor of the gradient.", minimum=0, at="apply", search=(1e-5, 0.1))


def descend(model: nn.Module, gradient: Callable[[nn.Module], Weights | None], steps: int, rate: float, context: Context) -> nn.Module:
    """Return a copy of a model after at most `steps` steps theta <- theta - rate * g.

    The report receives the number of steps taken, and the distance between the old and the new parameters.

    Args:
        model: The original model; it is not changed.
        gradient: Maps the copy to g, by parameter name, or to None to stop. Parameters that g does not name keep their values.
        steps: Most steps.
        rate: Factor of g.
        context: Provides the progress bar and the report.

    Raises:
        OneshuiError: The weights are no longer finite.
    """
    import torch

    from oneshui_hf.methods import norm, parameters

    new = copy.deepcopy(model).eval()
    weights, taken = dict(new.named_parameters()), 0
    for _ in context.reporter.track(range(steps), "Unlearning"):
        step = gradient(new)
        if step is None:
            break
        with torch.no_grad():
            for name, part in step.items():
                weights[name].sub_(part, alpha=rate)
        taken += 1
    before, after = parameters(model), parameters(new)
    length = norm({name: after[name] - before[name] for name in before}).item()
    if not math.isfinite(length):
        raise OneshuiError("The steps diverged: the weights are not finite; use smaller or fewer steps.")
    context.report |= {"steps_taken": taken, "step_length": length}
    return new.train(model.training)


def gradient_of(loss: torch.Tensor, model: nn.Module) -> Weights:
    """Return the gradient of a loss by parameter name; parameters that are frozen or do not affect it are left out."""
    import torch

    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    parts = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: part for name, part in zip(named, parts, strict=True) if part is not None}


def add_to(total: Weights, part: Weights, factor: float = 1.0) -> None:
    """Add `factor * part` to a sum of gradients, in place."""
    for name, tensor in part.items():
        total[name] = total[name] + factor * tensor if name in total else factor * tensor
