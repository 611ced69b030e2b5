"""In which coordinates forget keys are learned: those in which everybody else notices every direction alike.

What a change dW of a weight does to everybody else's answers is, to second order,

    KL(f_0 || f) = 1/2 vec(dW)^T F vec(dW),        F about A (x) B

with F the Fisher information, which for a layer is about the Kronecker product of two small matrices (K-FAC: Martens and Grosse 2015,
"Optimizing neural networks with Kronecker-factored approximate curvature"):

    A = E[x x^T]            over the rows x that the layer is given
    B = E[sum_x g g^T]      over photos, g the gradient, with regard to what the layer says of a row, of the log-likelihood of labels that
                            the model would draw

A change dW = U D is learned as V and R, with c and c' the means of the diagonals of A and B:

    D = R (A + damping * c * I)^(-1/2)        U = (B + damping * c' * I)^(-1/2) V

Then others notice of a layer's change about as much as |V R|^2, whatever its direction. A key listens where its person stands out beside
everybody else (Fisher's discriminant), and speaks where the others' answers are settled.

The scale is chosen for learning: each of the matrices has eigenvalues of mean 1, lest a layer that hardly matters be moved far, and all U
have a factor in common by which gradients are as large as without them, on average over the layers. So a learning rate means about the
same for a model whose layers are quiet in nearly all directions and for one whose layers are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from oneshui_hf.methods import Context, generator, sample

from ..common.input_covariance import Layer, covariances
from .batches import both_ways, shown
from .low_rank import Factors, Keys

if TYPE_CHECKING:
    from oneshui_hf.methods import TaskKind

    from .batches import Lessons

Weights = dict[str, torch.Tensor]  # by the weight's name

LOOKED_AT = 1024  # training photos, each as it is and mirrored


@dataclass(frozen=True)
class Coordinates:
    """Symmetric matrices of each weight.

    Attributes:
        up: (B + damping * c' * I)^(-1/2) up to its scale, (out, out).
        down: (A + damping * c * I)^(-1/2) up to its scale, (d, d).
    """

    up: Weights
    down: Weights

    def through(self, keys: Keys) -> Keys:
        """Return U and D of V and R; the gradient with regard to V and R of that with regard to U and D."""
        return {name: Factors(self.up[name] @ factors.up, factors.down @ self.down[name]) for name, factors in keys.items()}


def coordinates(model: nn.Module, layers: Mapping[str, list[Layer]], lessons: Lessons, context: Context) -> Coordinates:
    """Return the coordinates in which keys are learned. Processes share the passes."""
    draws = generator(context.seed, "coordinates")
    some, mirrored = both_ways(sample(len(lessons.train), LOOKED_AT, draws))
    chunk, damping = lessons.options.chunk, lessons.options.damping

    def load(rows: torch.Tensor) -> torch.Tensor:
        return shown(lessons.train, some[rows], mirrored[rows], context.device)

    widths = {name: weight[0].numel() for name, weight in model.named_parameters() if name in layers}
    given = {name: torch.zeros(width, width, device=context.device) for name, width in widths.items()}
    found = covariances(model, len(some), load, chunk, context)  # of the weights that photos reach
    given |= {name: covariance.matrix[0] for name, covariance in found.items() if name in layers}  # a weight with keys has one group
    heard = gradients(model, layers, len(some), load, chunk, context)
    up, down = ({name: inverse_root(energy[name], damping) for name in layers} for energy in (heard, given))
    left = torch.tensor([loudness(up[name], heard[name]) * loudness(down[name], given[name]) for name in layers])
    scale = float((-left.log().mean()).exp())
    return Coordinates({name: scale * matrix for name, matrix in up.items()}, down)


def gradients(
    model: nn.Module,
    layers: Mapping[str, list[Layer]],
    photos: int,
    load: Callable[[torch.Tensor], torch.Tensor],
    chunk: int,
    context: Context,
) -> Weights:
    """Return B of each weight, float64 (out, out).

    Args:
        model: The original model.
        layers: That use each weight.
        photos: How many there are.
        load: From positions to pixels (b, 3, S, S).
        chunk: Photos a forward-backward pass.
        context: For the device, the task and the processes.
    """
    draws = generator(context.seed, "curvature")
    weights = dict(model.named_parameters())
    sums = {name: torch.zeros(len(weights[name]), len(weights[name]), dtype=torch.float64, device=context.device) for name in layers}
    hooks = [layer.register_forward_hook(_watch(sums[name])) for name, users in layers.items() for layer in users]
    noise = torch.randint(2, (photos, len(context.task.label_names)), generator=draws) * 2.0 - 1
    for rows in context.reporter.track(context.mine(torch.arange(photos).split(chunk)), "Reading what its answers depend on"):
        logits = model(pixel_values=load(rows).requires_grad_()).logits
        (logits * surprise(logits.detach(), noise[rows].to(logits), context.task.kind)).sum().backward()
    for hook in hooks:
        hook.remove()
    return {name: context.accelerator.reduce(total, "sum") / photos for name, total in sums.items()}


def surprise(logits: torch.Tensor, noise: torch.Tensor, kind: TaskKind) -> torch.Tensor:
    """Return vectors (n, K) with the covariance that the gradient of the log-likelihood of labels drawn from the model has.

    That gradient with regard to the logits is y - p. Where a model is sure of its answers, y - p is nearly always almost nothing and now
    and then 1; noise of the same covariance that is as large every time shows as much with fewer photos.

    Args:
        logits: (n, K).
        noise: -1 or 1, each as likely, (n, K).
        kind: Of the task.
    """
    if kind == "multi_label":
        p = logits.sigmoid()
        return (p * (1 - p)).sqrt() * noise
    p = logits.softmax(dim=1)
    return p.sqrt() * noise - p * (p.sqrt() * noise).sum(dim=1, keepdim=True)


def _watch(total: torch.Tensor) -> Callable[..., None]:
    """Return a forward hook that lets a layer add the products of the gradients that reach it."""

    def reached(gradient: torch.Tensor) -> None:
        g = gradient.movedim(1, -1) if gradient.dim() == 4 else gradient
        g = g.reshape(-1, len(total))
        g = g.to(torch.promote_types(g.dtype, torch.float32))
        total.add_(g.mT @ g)

    def listen(layer: Layer, inputs: tuple[torch.Tensor, ...], said: torch.Tensor) -> None:
        said.register_hook(reached)

    return listen


def inverse_root(matrix: torch.Tensor, damping: float) -> torch.Tensor:
    """Return (C + damping * c * I)^(-1/2), c the mean of the diagonal, scaled to eigenvalues of mean 1, float32; the identity for C = 0."""
    energies, vectors = torch.linalg.eigh(matrix)
    mean = energies.mean()
    if not mean > 0:  # nothing reaches the layer
        return torch.eye(len(matrix), device=matrix.device)
    quieter = (energies.clamp(min=0) + damping * mean).rsqrt()
    return ((vectors * (quieter / quieter.mean())) @ vectors.mT).float()


def loudness(root: torch.Tensor, matrix: torch.Tensor) -> float:
    """Return how large what C is the covariance of is after the root, beside before: the root of tr(M C M) / tr(C); 1 where C is 0."""
    energy = matrix.trace()
    return float(((root.double() @ matrix @ root.double()).trace() / energy).sqrt()) if energy > 0 else 1.0
