"""The mathematics of MetaUnlearn: the small loss network, its step on the photos, and the exact gradient of the meta-objective.

u(theta) (n, d) is what the model says about the n photos handed in: the probabilities and the input of its head. A network h_phi maps
[u, target, identity embedding] to a scalar; M(phi, theta) is its mean over the photos. Unlearning is one step down its gradient,

    theta_u = theta - eta * grad_theta M                  (raw)
    theta_u = theta - r * g / ||g||,  g = grad_theta M    (normalised)

and phi is learned so that an objective A(theta_u) falls. With v = grad A at theta_u, the chain rule gives

    dA/dphi = -eta * d/dphi <grad_theta M, v> = -eta * d/dphi sum_i <du_i, udot_i>

where du_i = dM/du_i goes through h_phi alone and udot = J_u(theta) v is one forward-mode product on the photos. This is exact, and the
model is never differentiated twice. For the normalised step v becomes (v - ghat <ghat, v>) / ||g|| and eta becomes r, and the length
itself has dA/dr = -<ghat, v>.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from oneshui_hf.methods import (
    FaceSet,
    OneshuiError,
    Task,
    TaskKind,
    inner,
    logits_and_features,
    losses,
    norm,
    parameters,
    probabilities,
    score,
    seeded,
    unit,
)

Weights = dict[str, torch.Tensor]

EMBEDDING = 64  # of an identity
HIDDEN = 512
UNKNOWN = 0  # the embedding's row for people without one of their own
TOKENS = ("cls_token", "position_embeddings", "distillation_token", "mask_token")


class MetaLoss(nn.Module):
    """h_phi: from what the model says about a photo to a scalar (De Min et al. 2025, section 4 and appendix).

    Args:
        outputs: d, the size of u.
        labels: The size of a target vector.
        people: How many people have an embedding of their own; row 0 is for all others.
    """

    def __init__(self, outputs: int, labels: int, people: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(people + 1, EMBEDDING)
        self.network = nn.Sequential(
            nn.Linear(outputs + labels + EMBEDDING, HIDDEN),
            nn.LayerNorm(HIDDEN),
            nn.Linear(HIDDEN, HIDDEN),
            nn.GELU(),
            nn.Dropout(0.5),
            nn.LayerNorm(HIDDEN),
            nn.Linear(HIDDEN, 1),
            nn.Softplus(),
        )

    def forward(self, u: torch.Tensor, target: torch.Tensor, person: torch.Tensor) -> torch.Tensor:
        """Return the loss of each photo (n,) from u (n, d), target (n, K) and the person's row (n,)."""
        return self.network(torch.cat([u, target, self.embedding(person)], dim=1)).squeeze(1)


@dataclass
class Photos:
    """The photos handed in, as the loss network needs them: pixels (n, 3, S, S), target vectors (n, K), embedding rows (n,)."""

    pixels: torch.Tensor
    target: torch.Tensor
    person: torch.Tensor


def said(model: nn.Module, theta: Weights, pixels: torch.Tensor, kind: TaskKind) -> torch.Tensor:
    """Return u (n, d): probabilities and features."""
    logits, features = logits_and_features(model, pixels, theta)
    return torch.cat([probabilities(logits, kind), features], dim=1)


def movable(model: nn.Module, tokens: bool) -> Weights:
    """Return the parameters that take the step: all, or all but class token and position embedding (as the original code does)."""
    return {name: p for name, p in parameters(model).items() if tokens or name.rpartition(".")[2] not in TOKENS}


def gradient(model: nn.Module, theta: Weights, h: MetaLoss, photos: Photos, kind: TaskKind) -> tuple[Weights, torch.Tensor]:
    """Return g = grad_theta M, and du = dM/du (n, d), whose graph to phi is kept."""
    leaves = {name: p.detach().requires_grad_() for name, p in theta.items()}
    u = said(model, leaves, photos.pixels, kind)
    cut = u.detach().requires_grad_()
    (du,) = torch.autograd.grad(h(cut, photos.target, photos.person).mean(), cut, create_graph=True)
    parts = torch.autograd.grad(u, list(leaves.values()), grad_outputs=du.detach(), allow_unused=True)
    g = {name: torch.zeros_like(p) if part is None else part for (name, p), part in zip(theta.items(), parts, strict=True)}
    return g, du


def factor(g: Weights, length: float, normalised: bool) -> float:
    """Return what g is multiplied by in the step.

    Raises:
        OneshuiError: The gradient vanishes or is not finite, so it has no direction.
    """
    size = norm(g).item()
    if not (0 < size < float("inf")):
        raise OneshuiError("The photos give no usable gradient of the meta-loss; try another photo, or prepare again.")
    return length / size if normalised else length


@dataclass(frozen=True)
class Alignment:
    """The meta-objective A: the loss on the forget images should be that on strangers' images (val), under theta_u and under theta.

    A = s(f - v(theta_u)) + s(f - v(theta)), s smooth-L1, where f and v are the mean loss on forget and val images times (1 - score), the
    batch's score (mAP or accuracy, 0 to 1) taken as a constant. Images pass in chunks, so memory does not grow with their number.

    Attributes:
        before: v(theta), computed once.
        chunk: Images a forward-backward pass.
    """

    train: FaceSet
    forget: torch.Tensor
    val: FaceSet
    strangers: torch.Tensor
    before: float
    task: Task
    chunk: int = 32

    def __call__(self, model: nn.Module, theta_u: Weights) -> tuple[float, Weights]:
        """Return A and v = grad A at theta_u."""
        loss_f, weight_f, v_f = mean_gradient(model, theta_u, self.train, self.forget, self.task, self.chunk)
        loss_v, weight_v, v_v = mean_gradient(model, theta_u, self.val, self.strangers, self.task, self.chunk)
        after = loss_f * weight_f - loss_v * weight_v
        origin = loss_f * weight_f - self.before
        slope_after, slope_origin = (
            max(-1.0, min(1.0, after)),
            max(-1.0, min(1.0, origin)),
        )  # the derivative of smooth-L1
        by_f, by_v = (slope_after + slope_origin) * weight_f, -slope_after * weight_v
        value = F.smooth_l1_loss(torch.tensor([after, origin]), torch.zeros(2), reduction="sum").item()
        return value, {name: by_f * v_f[name] + by_v * v_v[name] for name in theta_u}


def mean_gradient(
    model: nn.Module, theta: Weights, faces: FaceSet, positions: torch.Tensor, task: Task, chunk: int
) -> tuple[float, float, Weights]:
    """Return the mean loss on some images, 1 - their score, and the gradient of the mean loss."""
    total, parts, seen = 0.0, {name: torch.zeros_like(p) for name, p in theta.items()}, []
    device = next(iter(theta.values())).device
    leaves = {name: p.detach().requires_grad_() for name, p in theta.items()}
    for some in positions.split(chunk):
        pixels, labels = faces.batch(some, device)
        logits = logits_and_features(model, pixels, leaves)[0]
        loss = losses(logits, labels, task.kind).sum() / len(positions)
        for name, part in zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True):
            if part is not None:
                parts[name] += part
        total += loss.item()
        seen.append(logits.detach())
    return total, weight(torch.cat(seen).cpu(), faces.labels[positions], task), parts


def weight(logits: torch.Tensor, labels: torch.Tensor, task: Task) -> float:
    """Return 1 - score, the score in 0..1."""
    return 1 - score(logits, labels, task) / 100


def meta_gradient(
    model: nn.Module,
    theta: Weights,
    h: MetaLoss,
    photos: Photos,
    objective: Callable[[nn.Module, Weights], tuple[float, Weights]],
    kind: TaskKind,
    *,
    length: float,
    normalised: bool,
    seed: int,
) -> tuple[float, list[torch.Tensor], float]:
    """Return A(theta_u), dA/dphi (in the order of `h.parameters()`), and dA/dr (0 for a raw step).

    Args:
        model: The classifier; its own parameters are not read where `theta` names them.
        theta: The parameters that take the step.
        h: The loss network, in training mode if its dropout is to act.
        photos: The photos handed in.
        objective: From (model, theta_u) to A and its gradient.
        kind: The task's kind.
        length: eta, or r.
        normalised: Which of the two.
        seed: Of the dropout mask, which both uses of du share.
    """
    with seeded(seed, "mask"):
        g, du = gradient(model, theta, h, photos, kind)
    by_g = factor(g, length, normalised)
    value, v = objective(model, {name: p - by_g * g[name] for name, p in theta.items()})
    by_length = 0.0
    if normalised:
        ghat = unit(g)
        along = inner(ghat, v)
        by_length = -along.item()
        v = {name: v[name] - along * ghat[name] for name in v}
    # Fused attention has no forward mode; only this product needs the plain one.
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        udot = torch.func.jvp(lambda p: said(model, p, photos.pixels, kind), (theta,), (v,))[1]
    pairing = -by_g * (du * udot.detach()).sum()
    phi = list(h.parameters())
    parts = torch.autograd.grad(pairing, phi, allow_unused=True)
    return (
        value,
        [torch.zeros_like(p) if part is None else part for p, part in zip(phi, parts, strict=True)],
        by_length,
    )
