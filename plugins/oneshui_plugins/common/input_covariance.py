"""Gradient projection for Projected-Gradient Unlearning (PGU): input covariances, core spaces and the projection out of them.

A linear layer multiplies each of its input rows x by W, a convolution each of its patches. A step dW changes the output by dW x. With

    C = 1/n sum_i x_i x_i^T = V diag(e) V^T        the uncentred covariance of the layer's input rows over the training photos
    M = the leading k columns of V                 the core space: the fewest with e_1 + ... + e_k >= gamma * (e_1 + ... + e_d)

a gradient G is replaced by G (I - M M^T) (Hoang et al. 2024, section 3). This leaves the output for any row in the core space unchanged.

Statistics belong to a weight, not to a layer. If a layer is used several times in a pass, or layers share their weight, the rows of every
use are added up, so that every use is protected from the step. The first dimension of all tensors is the group of a convolution: each group
has its own input rows and its own core space. A linear layer has one group. For a depthwise convolution d is the size of its kernel.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.hooks import RemovableHandle

from oneshui_hf.methods import Context, add_up

Layer = nn.Linear | nn.Conv2d
RowExtractor = Callable[[Layer, torch.Tensor], torch.Tensor]  # (layer, its input) -> the rows that its weight multiplies, (g, n, d)


@dataclass
class Covariance:
    """The uncentred covariance of a weight's input rows.

    Attributes:
        matrix: C, (g, d, d).
        num_rows: n, the number of rows per group.
    """

    matrix: torch.Tensor
    num_rows: int

    def minus(self, other: Covariance) -> torch.Tensor:
        """Return C - (n' / n) C', the covariance without the rows of `other`, up to a scale on which the core space does not depend.

        If the rows of `other` are not among these rows, the result can have negative eigenvalues. `core_space` takes them as zero.
        """
        return self.matrix - other.matrix * (other.num_rows / self.num_rows)


def projectable_layers(model: nn.Module) -> dict[str, list[Layer]]:
    """Return the linear and convolution layers that use each weight, by the weight's name.

    Layers with another forward pass (standardised or reparametrised weights, an overridden `forward`) are left out and not updated.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers: dict[str, list[Layer]] = {}
    for module in model.modules():
        is_plain = type(module).forward in (nn.Linear.forward, nn.Conv2d.forward)
        if is_plain and isinstance(module, Layer) and id(module.weight) in names:
            layers.setdefault(names[id(module.weight)], []).append(module)
    return layers


def input_rows(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Return the rows that the weight of a layer multiplies, (g, n, d).

    Args:
        layer: A linear layer or a convolution.
        x: Its input: (..., d), one row per token; or (b, c, h, w), one row per patch at which the kernel is applied.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode)  # as the layer itself pads, also for "same" and "reflect"
    patches = F.unfold(x, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)  # (b, c * kh * kw, patches)
    by_group = patches.unflatten(1, (layer.groups, -1))  # (b, g, d, patches): the channel varies slowest, so a group is contiguous
    return by_group.permute(1, 0, 3, 2).flatten(1, 2)


def input_covariances(
    model: nn.Module,
    num_images: int,
    load: Callable[[torch.Tensor], torch.Tensor],
    chunk: int,
    context: Context,
    extract_rows: RowExtractor = input_rows,
) -> dict[str, Covariance]:
    """Return the covariance of every weight's input rows over some photos, by the weight's name.

    Rows are not stored. Their products are computed in their own precision (at least float32) and summed in float64, so memory holds one
    matrix per weight. Each process takes every n-th chunk, and the sums are reduced. A weight without input rows has no covariance.

    Args:
        model: Any classifier; it is not changed.
        num_images: Number of photos.
        load: Maps positions (b,) to pixels (b, 3, S, S).
        chunk: Photos per forward pass.
        context: Provides the device, the processes and the progress bar.
        extract_rows: Returns the input rows of a layer.
    """
    frozen, accelerator = copy.deepcopy(model).eval(), context.accelerator
    weights, layers = dict(frozen.named_parameters()), projectable_layers(frozen)
    sums: dict[str, torch.Tensor] = {}
    hooks: list[RemovableHandle] = []
    counts = {name: torch.zeros((), dtype=torch.int64, device=context.device) for name in layers}
    for name, users in layers.items():
        groups, d = getattr(users[0], "groups", 1), weights[name][0].numel()
        sums[name] = torch.zeros(groups, d, d, dtype=torch.float64, device=context.device)
        hooks += [_accumulate_products(layer, extract_rows, sums[name], counts[name]) for layer in users]

    @torch.no_grad()
    def add(positions: torch.Tensor) -> None:
        frozen(pixel_values=load(positions))

    kept = {f"sum/{name}": total for name, total in sums.items()} | {f"count/{name}": count for name, count in counts.items()}
    add_up(context, "input-covariances", torch.arange(num_images).split(chunk), kept, add, "Reading the layers' inputs")
    del kept
    for hook in hooks:  # the hooks reference the sums, which are freed one by one below
        hook.remove()
    found: dict[str, Covariance] = {}
    for name in layers:
        total, count = accelerator.reduce(sums.pop(name), "sum"), int(accelerator.reduce(counts[name], "sum"))
        if count:
            found[name] = Covariance(total / count, count)
    return found


def _accumulate_products(layer: Layer, extract_rows: RowExtractor, total: torch.Tensor, count: torch.Tensor) -> RemovableHandle:
    """Register a hook that adds, at every use of a layer, the products of its input rows to `total` and their number to `count`."""

    def add(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        # Unfolded patches need as many times a photo's memory as the kernel has pixels, so convolutions take one photo at a time.
        for part in inputs[0].split(1) if isinstance(layer, nn.Conv2d) else inputs[:1]:
            x = extract_rows(layer, part)
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            total.add_(x.mT @ x)
            count.add_(x.shape[1])

    return layer.register_forward_pre_hook(add)


def core_space(covariance: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return M (g, d, k), an orthonormal basis of the core space. For a group that needs fewer than k columns the others are zero.

    Args:
        covariance: C, (g, d, d), symmetric. Negative eigenvalues are set to zero, which gives the nearest positive semi-definite matrix.
        gamma: Share of the energy (sum of eigenvalues) that the core space reaches.
    """
    energies, vectors = torch.linalg.eigh(covariance.double())
    energies, vectors = energies.clamp(min=0).flip(-1), vectors.flip(-1)  # in descending order
    cumulative = energies.cumsum(-1)
    is_needed = cumulative - energies < gamma * cumulative[..., -1:]  # a direction is needed while those before it do not reach gamma
    k = int(is_needed.sum(-1).max())
    return (vectors * is_needed.unsqueeze(-2))[..., :k]


def project_out(gradient: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Return G (I - M M^T), in the shape of the weight.

    Args:
        gradient: G, the gradient of a weight, (out, in) or (out, in / g, kh, kw).
        basis: M, (g, d, k).
    """
    g = gradient.reshape(len(basis), -1, basis.shape[1])  # (g, out / g, d)
    return (g - g @ basis @ basis.mT).view_as(gradient)
