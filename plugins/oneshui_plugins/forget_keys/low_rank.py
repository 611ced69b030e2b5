"""Low-rank updates of weights, one per weight and identity: attached to the layers while they are trained, merged at the request.

The key of an identity p updates every weight W of a linear layer or a convolution, taken as a matrix (out, d), by

    dW_p = U_p D_p        U_p (out, r), D_p (r, d), r the rank

as in LoRA (Hu et al. 2022), and the updates of several identities add up: W + sum_p U_p D_p. During training nothing is merged: the
layer's output gets the additional term sum_p U_p (D_p x). For n identities this is one layer of n * r rows before another, which costs
little next to the layer itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..common.input_covariance import Layer, projectable_layers


@dataclass
class LowRankUpdate:
    """The updates of one weight by n identities.

    Attributes:
        up: U, (n, out, r).
        down: D, (n, r, d).
    """

    up: torch.Tensor
    down: torch.Tensor

    def delta_weight(self) -> torch.Tensor:
        """Return the sum of the n updates, (out, d)."""
        return torch.einsum("por,prd->od", self.up, self.down)


Updates = dict[str, LowRankUpdate]  # by the weight's name


def target_layers(model: nn.Module, fraction: float) -> dict[str, list[Layer]]:
    """Return the layers that use each weight which keys update: the last `fraction` of all weights of linear layers and plain convolutions.

    Grouped convolutions are excluded: each group has a small matrix, which a few rank-one terms would replace rather than update.
    """
    weights = {name: users for name, users in projectable_layers(model).items() if all(getattr(layer, "groups", 1) == 1 for layer in users)}
    names = list(weights)
    return {name: weights[name] for name in names[len(names) - max(1, round(fraction * len(names))) :]}


def with_photo_batches(model: nn.Module, layers: Mapping[str, list[Layer]], photos: torch.Tensor) -> dict[str, list[Layer]]:
    """Return the same weights; those whose inputs are not batches of photos have no layers, so that keys leave them as they are.

    The gradient mask is by photo, so the first dimension of an input has to be the photos, or the parts (windows) of one photo after
    those of another. This does not hold for a layer whose input is a table that all photos share, such as the position bias of Swin V2,
    or whose first dimension is the tokens. A layer that is not called is kept, since it does no harm.

    Args:
        model: The frozen model, in evaluation mode.
        layers: The layers that use each weight.
        photos: Two different model inputs, (2, 3, S, S).
    """
    one, two = (_input_norms(model, layers, some) for some in (photos[:1], photos))
    found: dict[str, list[Layer]] = {}
    for name, users in layers.items():
        calls = zip(one[name], two[name], strict=True)
        is_batch = all(len(b) == 2 * len(a) and torch.allclose(b[: len(a)], a, rtol=1e-3, atol=1e-3) for a, b in calls)
        found[name] = users if is_batch else []
    return found


def _input_norms(model: nn.Module, layers: Mapping[str, list[Layer]], photos: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    """Return, for every use of each weight, the root mean square of the input at each position of its first dimension."""
    norms: dict[str, list[torch.Tensor]] = {name: [] for name in layers}

    def record(name: str) -> Callable[..., None]:
        return lambda layer, inputs: norms[name].append(inputs[0].flatten(1).square().mean(dim=1).sqrt())

    hooks = [layer.register_forward_pre_hook(record(name)) for name, users in layers.items() for layer in users]
    try:
        with torch.no_grad():
            model(pixel_values=photos)
    finally:
        for hook in hooks:
            hook.remove()
    return norms


@contextmanager
def with_adapters(layers: Mapping[str, list[Layer]], updates: Updates, gradient_mask: torch.Tensor | None = None) -> Iterator[None]:
    """Add low-rank updates to the outputs of layers for the duration of the block.

    Args:
        layers: The layers that use each weight.
        updates: Of n identities.
        gradient_mask: (photos, n) of 0 and 1: which updates receive a gradient from each photo; all by default. The outputs do not
            depend on it.
    """
    hooks = [layer.register_forward_hook(_adapter_hook(updates[name], gradient_mask)) for name, users in layers.items() for layer in users]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _adapter_hook(update: LowRankUpdate, gradient_mask: torch.Tensor | None) -> Callable[..., torch.Tensor]:
    """Return a forward hook that adds the updates to a layer's output."""
    n, out, rank = update.up.shape
    down = update.down.reshape(n * rank, -1)
    up = update.up.permute(1, 0, 2).reshape(out, n * rank)

    def add(layer: Layer, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        x = inputs[0]
        if gradient_mask is None:
            return output + _low_rank_output(layer, x, down, up)
        mask = gradient_mask.repeat_interleave(rank, dim=1).to(x.dtype)  # (photos, n * rank)
        if len(x) != len(mask):  # several windows of each photo, see `with_photo_batches`
            mask = mask.repeat_interleave(len(x) // len(mask), dim=0)
        places = (1,) * (x.dim() - 2)
        mask = mask.view(len(mask), -1, *places) if isinstance(layer, nn.Conv2d) else mask.view(len(mask), *places, -1)
        trained = _low_rank_output(layer, x, down, up, mask)
        return output + trained + _low_rank_output(layer, x, down.detach(), up.detach(), 1 - mask)

    return add


def _low_rank_output(layer: Layer, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return U (D x); with a mask, only of the selected rank-one terms."""
    if isinstance(layer, nn.Linear):
        inner = F.linear(x, down)
        return F.linear(inner if mask is None else inner * mask, up)
    inner = layer._conv_forward(x, down.view(len(down), *layer.weight.shape[1:]), None)  # with the layer's padding and stride
    return F.conv2d(inner if mask is None else inner * mask, up[:, :, None, None])


def select_identities(updates: Updates, indices: Sequence[int]) -> Updates:
    """Return the updates of some of the identities, by their indices."""
    return {name: LowRankUpdate(update.up[list(indices)], update.down[list(indices)]) for name, update in updates.items()}


def scale_updates(updates: Updates, factors: torch.Tensor) -> Updates:
    """Return the updates of n identities, each multiplied by its factor (n,)."""
    return {name: LowRankUpdate(update.up * factors.to(update.up).view(-1, 1, 1), update.down) for name, update in updates.items()}


def merge(model: nn.Module, updates: Iterable[Updates], strength: float) -> nn.Module:
    """Return a copy of a model with `strength` times these updates added to its weights.

    The updates are first summed in double precision, so that their order hardly ever changes the result in single precision.
    """
    sums: dict[str, torch.Tensor] = {}
    for some in updates:
        for name, update in some.items():
            delta = update.delta_weight().double()
            sums[name] = sums[name] + delta if name in sums else delta
    new = copy.deepcopy(model)
    weights = dict(new.named_parameters())
    with torch.no_grad():
        for name, delta in sums.items():
            weights[name].add_((strength * delta).view_as(weights[name]).to(weights[name]))
    return new
