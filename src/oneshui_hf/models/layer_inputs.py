"""The inputs of a model's linear layers, and how much of them lies in given directions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from .load import evaluation_mode

Record = Callable[[str, torch.Tensor], None]


@dataclass(frozen=True, eq=False)
class RowSpace:
    """The singular value decomposition of the weight difference of a linear layer, without the left singular vectors.

    Attributes:
        directions: Right singular vectors, orthonormal rows, float32 (r, in), in descending order of their singular values.
        energies: Squared singular values, scaled to sum 1, float64 (r,).
    """

    directions: torch.Tensor
    energies: torch.Tensor


def linear_layers(model: nn.Module, weights: Iterable[str]) -> dict[str, nn.Linear]:
    """Return the linear layers with these weights, by the name of the weight ("NAME.weight").

    Subclasses of `nn.Linear` are left out, since their weights are often used without their forward.
    """
    modules = dict(model.named_modules())
    found = {name: modules.get(name.removesuffix(".weight")) for name in weights if name.endswith(".weight")}
    return {name: module for name, module in found.items() if type(module) is nn.Linear}


def layer_energies(
    model: nn.Module, row_spaces: Mapping[str, RowSpace], batches: Iterable[torch.Tensor], device: torch.device | str
) -> dict[str, torch.Tensor]:
    """Return the energy of each photo's layer inputs in a row space, by layer, float64 (n,) on the CPU, each 0..1.

    For the input x of a layer at a token, the mean m of the layer's inputs over all tokens of all photos, and directions v_k with energies
    e_k, it is sum_k w_k <v_k, x - m>^2 / ||x - m||^2: the share of the centred input that lies in the row space, with w_k = e_k / (e_k +
    1 / in). The energy of a photo is the mean over its tokens.

    Nothing is chosen: 1 / in is the energy of a direction in a difference that has no preferred directions. A direction with much more
    counts whole, one with much less not at all. Weights e_k would let one direction decide, which for gradients is the mean input; without
    weights, rounding errors and regularisation, which change all directions a little, would count as much as the update. The mean is
    subtracted because the inputs of all photos share a large part, which would hide what differs.

    All photos pass through the model twice: for the mean, and for the energies. Layers that are not in the result are no `nn.Linear` or
    are not called by the model.

    Args:
        model: The original model, on the device.
        row_spaces: By the name of the layer's weight.
        batches: Preprocessed photos (b, 3, S, S). They are iterated over twice; an iterator, which ends after one pass, is first read into
            a list.
        device: Where to compute.
    """
    if iter(batches) is batches:
        batches = list(batches)
    layers = linear_layers(model, row_spaces)
    sums: dict[str, torch.Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def add(name: str, inputs: torch.Tensor) -> None:
        tokens = inputs.flatten(0, 1)
        sums[name] = sums.get(name, 0) + tokens.sum(dim=0).cpu().double()
        counts[name] += len(tokens)

    _pass_through(model, layers, batches, device, add)
    means = {name: (total / counts[name]).float().to(device) for name, total in sums.items()}
    projections = {name: _weighted_directions(row_spaces[name]).to(device) for name in means}
    energies: dict[str, list[torch.Tensor]] = {name: [] for name in means}

    def measure(name: str, inputs: torch.Tensor) -> None:
        centred = inputs - means[name]
        passed, whole = (values.square().sum(dim=-1) for values in (centred @ projections[name], centred))
        shares = torch.where(whole > 0, passed / whole, 0)
        energies[name].append(shares.mean(dim=1).cpu().double())

    _pass_through(model, layers, batches, device, measure)
    return {name: torch.cat(of_layer) for name, of_layer in energies.items()}


def _weighted_directions(space: RowSpace) -> torch.Tensor:
    """Return the directions, scaled by the square roots of their weights, as columns (in, r)."""
    weights = space.energies / (space.energies + 1 / space.directions.shape[1])
    return (space.directions * weights.float().sqrt()[:, None]).T


def _pass_through(
    model: nn.Module, layers: Mapping[str, nn.Linear], batches: Iterable[torch.Tensor], device: torch.device | str, record: Record
) -> None:
    """Pass photos through a model, and call `record` with the name and the input, float32 (b, tokens, in), of each layer."""
    with evaluation_mode(model):
        for pixels in batches:
            with _recorded(layers, len(pixels), record):
                model(pixel_values=pixels.to(device))


@contextlib.contextmanager
def _recorded(layers: Mapping[str, nn.Linear], photos: int, record: Record) -> Iterator[None]:
    """Record the inputs of layers inside the block. Of a layer that is called several times, the calls are tokens of one input."""
    inputs: dict[str, list[torch.Tensor]] = {}

    def hook_of(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        # Layers that process parts of a photo separately, such as windows, have the parts of one photo in adjacent rows.
        return lambda module, args: inputs.setdefault(name, []).append(args[0].detach().float().reshape(photos, -1, args[0].shape[-1]))

    hooks = [layer.register_forward_pre_hook(hook_of(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    for name, parts in inputs.items():
        record(name, torch.cat(parts, dim=1))
