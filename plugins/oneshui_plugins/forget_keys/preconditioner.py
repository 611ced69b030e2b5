"""The preconditioner of keys (K-FAC): coordinates in which the penalty on the photos of all other identities is isotropic.

The effect of an update dW of a weight on the predictions for all other identities is, to second order,

    KL(f_0 || f) = 1/2 vec(dW)^T F vec(dW),        F about A (x) B

with F the Fisher information, which for a layer is approximately the Kronecker product of two small matrices (K-FAC: Martens and Grosse
2015, "Optimizing neural networks with Kronecker-factored approximate curvature"):

    A = E[x x^T]            over the input rows x of the layer
    B = E[sum_x g g^T]      over photos, g the gradient with regard to the layer's output for a row, of the log-likelihood of labels sampled
                            from the model

An update dW = U D is parametrised by V and R, with c and c' the means of the diagonals of A and B:

    D = R (A + damping * c * I)^(-1/2)        U = (B + damping * c' * I)^(-1/2) V

Inputs are whitened by A and output gradients by B, so a layer's update costs the other identities about |V R|^2 in every direction.
D gets the input directions in which an identity differs most from all others (Fisher's discriminant), and U the output directions to
which the predictions for the others are least sensitive.

The scale is chosen for the training. Each of the matrices has eigenvalues of mean 1, so that a layer with little effect is not updated
far. All U share a factor that makes gradients as large as without preconditioning, on average over the layers. So a learning rate means
about the same for a model whose layers have little energy in nearly all directions and for one whose layers do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from oneshui_hf.methods import Context, add_up, generator, sample

from ..common.input_covariance import Layer, input_covariances
from .batches import load_pixel_values, repeat_mirrored
from .low_rank import LowRankUpdate, Updates

if TYPE_CHECKING:
    from oneshui_hf.methods import TaskKind

    from .batches import TrainingData

Matrices = dict[str, torch.Tensor]  # by the weight's name

MAX_PHOTOS = 1024  # training photos, each original and mirrored


@dataclass(frozen=True)
class Preconditioner:
    """Symmetric matrices for each weight.

    Attributes:
        up: (B + damping * c' * I)^(-1/2) up to its scale, (out, out).
        down: (A + damping * c * I)^(-1/2) up to its scale, (d, d).
    """

    up: Matrices
    down: Matrices

    def apply(self, updates: Updates) -> Updates:
        """Return U and D of V and R; also maps the gradient with regard to U and D to that with regard to V and R."""
        return {name: LowRankUpdate(self.up[name] @ update.up, update.down @ self.down[name]) for name, update in updates.items()}


def estimate_preconditioner(model: nn.Module, layers: Mapping[str, list[Layer]], data: TrainingData, context: Context) -> Preconditioner:
    """Estimate the preconditioner on at most `MAX_PHOTOS` training photos. Processes share the passes."""
    rng = generator(context.seed, "coordinates")
    positions, mirrored = repeat_mirrored(sample(len(data.train), MAX_PHOTOS, rng))
    chunk, damping = data.options.chunk, data.options.damping

    def load(rows: torch.Tensor) -> torch.Tensor:
        return load_pixel_values(data.train, positions[rows], mirrored[rows], context.device)

    widths = {name: weight[0].numel() for name, weight in model.named_parameters() if name in layers}
    inputs = {name: torch.zeros(width, width, device=context.device) for name, width in widths.items()}
    found = input_covariances(model, len(positions), load, chunk, context)  # only of weights that a photo reaches
    inputs |= {name: covariance.matrix[0] for name, covariance in found.items() if name in layers}  # target layers have one group
    outputs = gradient_covariances(model, layers, len(positions), load, chunk, context)
    up, down = ({name: inverse_root(covariance[name], damping) for name in layers} for covariance in (outputs, inputs))
    gains = torch.tensor([gain(up[name], outputs[name]) * gain(down[name], inputs[name]) for name in layers])
    scale = float((-gains.log().mean()).exp())
    return Preconditioner({name: scale * matrix for name, matrix in up.items()}, down)


def gradient_covariances(
    model: nn.Module,
    layers: Mapping[str, list[Layer]],
    photos: int,
    load: Callable[[torch.Tensor], torch.Tensor],
    chunk: int,
    context: Context,
) -> Matrices:
    """Return B of each weight, float64 (out, out).

    Args:
        model: The original model.
        layers: The layers that use each weight.
        photos: How many there are.
        load: From positions to pixels (b, 3, S, S).
        chunk: Photos per forward-backward pass.
        context: For the device, the task and the processes.
    """
    rng = generator(context.seed, "curvature")
    weights = dict(model.named_parameters())
    sums = {name: torch.zeros(len(weights[name]), len(weights[name]), dtype=torch.float64, device=context.device) for name in layers}
    hooks = [layer.register_forward_hook(_covariance_hook(sums[name], layer)) for name, users in layers.items() for layer in users]
    signs = torch.randint(2, (photos, len(context.task.label_names)), generator=rng) * 2.0 - 1

    def add(rows: torch.Tensor) -> None:
        logits = model(pixel_values=load(rows).requires_grad_()).logits
        (logits * fisher_noise(logits.detach(), signs[rows].to(logits), context.task.kind)).sum().backward()

    add_up(context, "gradient-covariances", torch.arange(photos).split(chunk), sums, add, "Estimating gradient covariances")
    for hook in hooks:
        hook.remove()
    return {name: context.accelerator.reduce(total, "sum") / photos for name, total in sums.items()}


def fisher_noise(logits: torch.Tensor, signs: torch.Tensor, kind: TaskKind) -> torch.Tensor:
    """Return vectors (n, K) with the covariance of the gradient of the log-likelihood of labels sampled from the model.

    That gradient with regard to the logits is y - p. For a confident model, y - p is nearly always almost 0 and rarely 1; noise of the same
    covariance and of constant magnitude gives the same estimate from fewer photos.

    Args:
        logits: (n, K).
        signs: -1 or 1, equally likely, (n, K).
        kind: Of the task.
    """
    if kind == "multi_label":
        p = logits.sigmoid()
        return (p * (1 - p)).sqrt() * signs
    p = logits.softmax(dim=1)
    return p.sqrt() * signs - p * (p.sqrt() * signs).sum(dim=1, keepdim=True)


def _covariance_hook(total: torch.Tensor, layer: Layer) -> Callable[..., None]:
    """Return a forward hook that adds the outer products of the gradients of a layer's output rows to `total`."""

    def add(gradient: torch.Tensor) -> None:
        g = gradient.movedim(1, -1) if isinstance(layer, nn.Conv2d) else gradient  # (..., out); a linear layer may also have maps
        g = g.reshape(-1, len(total))
        g = g.to(torch.promote_types(g.dtype, torch.float32))
        total.add_(g.mT @ g)

    def register(layer: Layer, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        output.register_hook(add)

    return register


def inverse_root(matrix: torch.Tensor, damping: float) -> torch.Tensor:
    """Return (C + damping * c * I)^(-1/2), c the mean of the diagonal, scaled to eigenvalues of mean 1, float32; the identity for C = 0."""
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    mean = eigenvalues.mean()
    if not mean > 0:  # no photo reaches the layer
        return torch.eye(len(matrix), device=matrix.device)
    roots = (eigenvalues.clamp(min=0) + damping * mean).rsqrt()
    return ((vectors * (roots / roots.mean())) @ vectors.mT).float()


def gain(root: torch.Tensor, matrix: torch.Tensor) -> float:
    """Return by how much M (`root`) scales vectors of covariance C (`matrix`): the root of tr(M C M) / tr(C); 1 for C = 0."""
    energy = matrix.trace()
    return float(((root.double() @ matrix @ root.double()).trace() / energy).sqrt()) if energy > 0 else 1.0
