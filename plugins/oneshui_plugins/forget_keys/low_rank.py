"""Forget keys as matrices: a few rank-one terms per weight and person, added to what a layer says.

A key of a person p changes every weight W of a linear layer or a convolution, taken as a matrix (out, d), by

    dW_p = U_p D_p        U_p (out, r), D_p (r, d), r the rank

and the keys of several people are added: W + sum_p U_p D_p. While they are learned nothing is added up; the layer says in addition sum_p
U_p (D_p x), which for n people is one layer of n * r rows before another, and costs little beside the layer itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..common.input_covariance import Layer, projectable


@dataclass
class Factors:
    """What some people's keys do to one weight.

    Attributes:
        up: U, (n, out, r).
        down: D, (n, r, d).
    """

    up: torch.Tensor
    down: torch.Tensor

    def added(self) -> torch.Tensor:
        """Return the sum of the changes, (out, d)."""
        return torch.einsum("por,prd->od", self.up, self.down)


Keys = dict[str, Factors]  # by the weight's name


def keyed(model: nn.Module, share: float) -> dict[str, list[Layer]]:
    """Return the layers that use each weight which keys change: the last `share` of all weights of linear layers and plain convolutions.

    A grouped convolution has a small matrix for every group, which a few rank-one terms would replace rather than change; it is left out.
    """
    weights = {name: users for name, users in projectable(model).items() if all(getattr(layer, "groups", 1) == 1 for layer in users)}
    names = list(weights)
    return {name: weights[name] for name in names[len(names) - max(1, round(share * len(names))) :]}


@contextmanager
def attached(layers: Mapping[str, list[Layer]], keys: Keys, own: torch.Tensor | None = None) -> Iterator[None]:
    """Let layers say what they say with these keys, as long as the block lasts.

    Args:
        layers: The layers that use each weight.
        keys: Of n people.
        own: Where given, (photos, n): of which keys each photo is to be felt in the gradient. What the others say counts all the same.
    """
    hooks = [layer.register_forward_hook(_addition(keys[name], own)) for name, users in layers.items() for layer in users]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _addition(factors: Factors, own: torch.Tensor | None) -> Callable[..., torch.Tensor]:
    """Return a forward hook that adds what the keys say."""
    n, out, rank = factors.up.shape
    down = factors.down.reshape(n * rank, -1)
    up = factors.up.permute(1, 0, 2).reshape(out, n * rank)

    def add(layer: Layer, inputs: tuple[torch.Tensor, ...], said: torch.Tensor) -> torch.Tensor:
        x = inputs[0]
        if own is None:
            return said + _through(layer, x, down, up)
        mask = own.repeat_interleave(rank, dim=1).to(x.dtype)  # (photos, n * rank)
        places = (1,) * (x.dim() - 2)
        mask = mask.view(len(mask), -1, *places) if isinstance(layer, nn.Conv2d) else mask.view(len(mask), *places, -1)
        felt = _through(layer, x, down, up, mask)
        return said + felt + _through(layer, x, down.detach(), up.detach(), 1 - mask)

    return add


def _through(layer: Layer, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return U (D x), of some of the rank-one terms where a mask is given."""
    if isinstance(layer, nn.Linear):
        inside = F.linear(x, down)
        return F.linear(inside if mask is None else inside * mask, up)
    inside = layer._conv_forward(x, down.view(len(down), *layer.weight.shape[1:]), None)  # as the layer pads and strides
    return F.conv2d(inside if mask is None else inside * mask, up[:, :, None, None])


def some_of(keys: Keys, people: Sequence[int]) -> Keys:
    """Return the keys of some of the people, by their places."""
    return {name: Factors(factors.up[list(people)], factors.down[list(people)]) for name, factors in keys.items()}


def scaled(keys: Keys, by: torch.Tensor) -> Keys:
    """Return the keys of n people, each times a number of its own (n,)."""
    return {name: Factors(factors.up * by.to(factors.up).view(-1, 1, 1), factors.down) for name, factors in keys.items()}


def opened(model: nn.Module, keys: Iterable[Keys], strength: float) -> nn.Module:
    """Return a copy of a model with `strength` times these keys added to its weights.

    They are added up in double precision first, so that their order makes no difference that single precision could hold but by chance.
    """
    sums: dict[str, torch.Tensor] = {}
    for some in keys:
        for name, factors in some.items():
            change = factors.added().double()
            sums[name] = sums[name] + change if name in sums else change
    new = copy.deepcopy(model)
    weights = dict(new.named_parameters())
    with torch.no_grad():
        for name, change in sums.items():
            weights[name].add_((strength * change).view_as(weights[name]).to(weights[name]))
    return new
