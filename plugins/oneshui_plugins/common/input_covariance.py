"""The mathematics of Projected-Gradient Unlearning: what a layer's weights may change without the training photos noticing.

A linear layer says W x of each of its input rows x, a convolution of each of its patches, so a step dW changes what it says by dW x. With

    C = 1/n sum_i x_i x_i^T = V diag(e) V^T        the uncentred covariance of the layer's input rows over the training photos
    M = the leading k columns of V                 the core space: the fewest with e_1 + ... + e_k >= gamma * (e_1 + ... + e_d)

a gradient G is replaced by G (I - M M^T) (Hoang et al. 2024, section 3), which says nothing new of any row in the core space.

Statistics belong to a weight, not to a layer: a layer that is used several times in a pass, and layers that share their weight, add up
the rows of every use, so that the step is hidden from all of them. All tensors have the groups of a convolution first, since each group has
input rows, and so a core space, of its own; a linear layer has one group. For a depthwise convolution d is the size of its kernel.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.hooks import RemovableHandle

from oneshui_hf.methods import Context

Layer = nn.Linear | nn.Conv2d
Rows = Callable[[Layer, torch.Tensor], torch.Tensor]  # from a layer and its input to what its weight is multiplied with, (g, n, d)


@dataclass
class Covariance:
    """The uncentred covariance of a weight's input rows.

    Attributes:
        matrix: C, (g, d, d).
        rows: n, how many rows a group it is the mean over.
    """

    matrix: torch.Tensor
    rows: int

    def less(self, other: Covariance) -> torch.Tensor:
        """Return C - (n' / n) C', the covariance of these rows without the other ones, up to its scale, which no core space depends on.

        Where the other rows are not among these, it has negative eigenvalues, which no covariance has; `core` takes them as zero.
        """
        return self.matrix - other.matrix * (other.rows / self.rows)


def projectable(model: nn.Module) -> dict[str, list[Layer]]:
    """Return the linear and convolution layers that use each weight, by the weight's name.

    A layer that computes anything else (standardised or reparametrised weights, a forward of its own) is left out, and does not move.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers: dict[str, list[Layer]] = {}
    for module in model.modules():
        plain = type(module).forward in (nn.Linear.forward, nn.Conv2d.forward)
        if plain and isinstance(module, Layer) and id(module.weight) in names:
            layers.setdefault(names[id(module.weight)], []).append(module)
    return layers


def input_rows(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Return what the weight of a layer is multiplied with, (g, n, d).

    Args:
        layer: A linear layer or a convolution.
        x: Its input: (..., d), every token a row; or (b, c, h, w), every patch that the kernel is laid on a row.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode)  # as the layer itself pads, also for "same" and "reflect"
    patches = F.unfold(x, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)  # (b, c * kh * kw, places)
    by_group = patches.unflatten(1, (layer.groups, -1))  # (b, g, d, places): channel is the slowest, so those of a group lie together
    return by_group.permute(1, 0, 3, 2).flatten(1, 2)


def covariances(
    model: nn.Module,
    photos: int,
    load: Callable[[torch.Tensor], torch.Tensor],
    chunk: int,
    context: Context,
    rows_of: Rows = input_rows,
) -> dict[str, Covariance]:
    """Return the covariance of every weight's input rows over some photos, by the weight's name.

    Rows are never kept: they are multiplied out in their own precision (float32 at least) and added up in float64, so memory holds one
    matrix a weight. Processes take every n-th chunk of photos and add up. A weight that met no row has no covariance.

    Args:
        model: Any classifier; it stays as it is.
        photos: How many there are.
        load: From positions to pixels (b, 3, S, S).
        chunk: Photos a forward pass.
        context: For the device, the processes and the progress.
        rows_of: What counts as a layer's input rows.
    """
    still, accelerator = copy.deepcopy(model).eval(), context.accelerator
    weights, layers = dict(still.named_parameters()), projectable(still)
    sums: dict[str, torch.Tensor] = {}
    hooks: list[RemovableHandle] = []
    rows = {name: torch.zeros((), dtype=torch.int64, device=context.device) for name in layers}
    for name, users in layers.items():
        groups, d = getattr(users[0], "groups", 1), weights[name][0].numel()
        sums[name] = torch.zeros(groups, d, d, dtype=torch.float64, device=context.device)
        hooks += [_watch(layer, rows_of, sums[name], rows[name]) for layer in users]

    with torch.no_grad():
        for positions in context.reporter.track(context.mine(torch.arange(photos).split(chunk)), "Reading the layers' inputs"):
            still(pixel_values=load(positions))

    for hook in hooks:  # they hold the sums, which are let go one by one below
        hook.remove()
    found: dict[str, Covariance] = {}
    for name in layers:
        total, count = accelerator.reduce(sums.pop(name), "sum"), int(accelerator.reduce(rows[name], "sum"))
        if count:
            found[name] = Covariance(total / count, count)
    return found


def _watch(layer: Layer, rows_of: Rows, total: torch.Tensor, rows: torch.Tensor) -> RemovableHandle:
    """Let a layer add the products of its input rows, and their number, to these tensors whenever it is used."""

    def add(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        # A photo's patches take as many times its memory as the kernel has places, so convolutions take one photo at a time.
        for part in inputs[0].split(1) if isinstance(layer, nn.Conv2d) else inputs[:1]:
            x = rows_of(layer, part)
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            total.add_(x.mT @ x)
            rows.add_(x.shape[1])

    return layer.register_forward_pre_hook(add)


def core(covariance: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return M (g, d, k), an orthonormal basis of the core space; a group that needs fewer than k columns has zeros in the others.

    Args:
        covariance: C, (g, d, d), symmetric. Negative eigenvalues count as zero, which is the nearest positive semi-definite matrix.
        gamma: Share of the energy that the core space reaches.
    """
    energies, vectors = torch.linalg.eigh(covariance.double())
    energies, vectors = energies.clamp(min=0).flip(-1), vectors.flip(-1)  # falling
    reached = energies.cumsum(-1)
    needed = reached - energies < gamma * reached[..., -1:]  # a direction is needed while those before it do not reach gamma
    most = int(needed.sum(-1).max())
    return (vectors * needed.unsqueeze(-2))[..., :most]


def outside(gradient: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Return G (I - M M^T) in the weight's own shape.

    Args:
        gradient: Of a weight, (out, in) or (out, in / g, kh, kw).
        basis: M, (g, d, k).
    """
    g = gradient.reshape(len(basis), -1, basis.shape[1])  # (g, out / g, d)
    return (g - g @ basis @ basis.mT).view_as(gradient)
