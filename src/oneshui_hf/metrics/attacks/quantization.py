"""Quantisation: is a model with rounded weights, as it is exported, still the unlearned one?

Unlearning changes weights by little, and rounding changes each by up to half a quantum. What was hidden by a change smaller than that
comes back when the model is deployed in bfloat16, int8 or int4. No training and no data is needed for this attack.

Direction: scores, losses and attacks of the rounded model should be those of the oracle rounded in the same way, and `gap_closure`, which
compares three models rounded in the same way, should be that of the weights before rounding. `update_kept` is the part of the update of the
weights that is left after rounding both models, along the update itself: 0 means that none is left, 1 that rounding is harmless on
average.

What it cannot show: other schemes (groups of weights, rounded activations, calibrated ranges) round differently. A model that loses its
score by rounding has forgotten nothing selectively: compare with the original rounded in the same way.

Source: Zhang, Wang, Li, Wu, Tang, Liu, He, Yin, Wang, "Catastrophic Failure of LLM Unlearning via Quantization", ICLR 2025 (2410.16454).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

Precision = Literal["bf16", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = ("bf16", "int8", "int4")
BITS = {"int8": 8, "int4": 4}


def round_tensor(weights: torch.Tensor, bits: int, dims: tuple[int, ...]) -> torch.Tensor:
    """Return weights rounded to symmetric integers of so many bits, as floating-point numbers again.

    The quantum of a channel is its largest absolute value divided by 2^(bits - 1) - 1, so 0 and the largest value are represented. Ties
    are rounded to the even integer.

    Args:
        weights: Of any shape.
        bits: 2 or more.
        dims: The dimensions of a channel: weights that differ only in their place in these have one quantum.
    """
    largest = 2 ** (bits - 1) - 1
    quantum = weights.abs().amax(dim=dims, keepdim=True) / largest
    quantum = torch.where(quantum > 0, quantum, 1)
    return (weights / quantum).round().clamp(-largest, largest) * quantum


def round_weights(model: nn.Module, precision: Precision) -> nn.Module:
    """Return a copy of a model with rounded weights. It computes in its own precision, so that only the weights are rounded.

    `bf16` rounds all parameters and buffers. `int8` and `int4` round the weights of linear and convolution layers, per output channel, and
    the low-rank adapters of linear layers, per output of each of their two factors; biases, normalisation, class token and embeddings keep
    their precision, as in common exports.
    """
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        if precision == "bf16":
            for tensor in (*rounded.parameters(), *rounded.buffers()):
                if tensor.is_floating_point():
                    tensor.copy_(tensor.bfloat16())
        else:
            for tensor, dims in _rounded_weights(rounded):
                tensor.copy_(round_tensor(tensor, BITS[precision], dims))
    return rounded


def _rounded_weights(model: nn.Module) -> Iterator[tuple[torch.Tensor, tuple[int, ...]]]:
    """Yield the weights that are rounded to integers, each once, and the dimensions of an output channel."""
    found: set[int] = set()
    for module in model.modules():
        if not isinstance(module, nn.Linear | _ConvNd):
            continue
        for weights in module.parameters(recurse=False):
            if weights.dim() > 1 and id(weights) not in found:
                found.add(id(weights))
                yield weights, (tuple(range(1, weights.dim())) if isinstance(module, _ConvNd) else (-1,))


def update_kept(unlearned: nn.Module, original: nn.Module, precision: Precision) -> float | None:
    """Return the update of the weights after rounding, projected on the update before: <Q(u) - Q(o), u - o> / |u - o|^2.

    None where the models are equal, or have different parameters.
    """
    before, after = _update(unlearned, original), _update(*(round_weights(model, precision) for model in (unlearned, original)))
    if before is None or after is None or not before.any():
        return None
    return (before @ after / (before @ before)).item()


def _update(unlearned: nn.Module, original: nn.Module) -> torch.Tensor | None:
    """Return unlearned minus original for all parameters, float64 (p,); None if their shapes differ."""
    ours, others = (dict(model.named_parameters()) for model in (unlearned, original))
    if {name: of.shape for name, of in ours.items()} != {name: of.shape for name, of in others.items()}:
        return None
    with torch.no_grad():
        return torch.cat([(ours[name].double() - others[name].double()).flatten() for name in ours])
