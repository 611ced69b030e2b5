"""Vectors in weight space: inner product, norm, unit vector, and a model displaced along a vector."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from ..errors import OneshuiError

Weights = dict[str, torch.Tensor]  # by parameter name


def inner(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the inner product of two vectors in weight space, summed over the names in `a`."""
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def norm(a: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the Euclidean norm of a vector in weight space."""
    return inner(a, a).sqrt()


def unit(step: Mapping[str, torch.Tensor]) -> Weights:
    """Return a step of length 1 in the same direction.

    Raises:
        OneshuiError: The step is zero or not finite, so it has no direction.
    """
    length = norm(step)
    if not torch.isfinite(length) or length == 0:
        raise OneshuiError("The gradient of these photos is zero or not finite, so the step has no direction; try another photo.")
    return {name: part / length for name, part in step.items()}


def parameters(model: nn.Module) -> Weights:
    """Return a model's parameters by name, detached."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def displaced(model: nn.Module, step: Mapping[str, torch.Tensor], length: float = 1.0) -> nn.Module:
    """Return a copy of a model with `length * step` added to its parameters. Parameters that `step` does not name keep their values.

    Raises:
        OneshuiError: The length is not a number of single precision.
    """
    if not abs(length) <= torch.finfo(torch.float32).max:
        raise OneshuiError(f"The step is too long: {length:g} is not a number of single precision; use a smaller step.")
    new = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            if name in step:
                parameter.add_(step[name], alpha=length)
    return new
