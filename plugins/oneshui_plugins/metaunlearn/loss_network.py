"""The mathematics of MetaUnlearn: the small loss network, its steps on the photos, and the exact gradient of the meta-objective.

u(theta) (n, d) is what the model says about the n photos handed in: the probabilities and the input of its head. A network h_phi maps
[u, target, identity embedding] to a scalar; M(phi, theta) is its mean over the photos. Unlearning is one step down its gradient,

    theta_u = theta - eta * grad_theta M                  (raw)
    theta_u = theta - r * g / ||g||,  g = grad_theta M    (normalised)

and phi is learned so that an objective A(theta_u) falls. With v = grad A at theta_u, the chain rule gives

    dA/dphi = -eta * d/dphi <grad_theta M, v> = -eta * d/dphi sum_i <du_i, udot_i>

where du_i = dM/du_i goes through h_phi alone and udot = J_u(theta) v is one forward-mode product on the photos. This is exact, and the
model is never differentiated twice on the forget images. For the normalised step v becomes (v - ghat <ghat, v>) / ||g|| and eta becomes r,
and the length itself has dA/dr = -<ghat, v>.

Of T steps each is of eta, or of r / T. Their parts add up, from the last step to the first, with v taken back over a step by

    v_t = v_(t+1) - eta * H_t v_(t+1)

(v on the right projected as above), H_t the Hessian of M at theta_t. As grad_theta M = J_u^T du, its product with v is the derivative of
J_u(theta)^T c along (v, d/du <du, udot>) at c = du: forward over reverse, on the photos handed in alone. One step needs none of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from oneshui_hf.methods import OneshuiError, TaskKind, inner, logits_and_features, norm, parameters, probabilities, seeded, unit

Weights = dict[str, torch.Tensor]

EMBEDDING = 64  # of an identity
HIDDEN = 512
UNKNOWN = 0  # the embedding's row for people without one of their own
TOKENS = ("cls_token", "position_embeddings", "distillation_token", "mask_token")


@dataclass(frozen=True)
class Sees:
    """What h sees of a photo, beside the model's probabilities: the input of its head, the person's embedding, the labels."""

    features: bool = True
    identity: bool = True
    targets: bool = True


ALL = Sees()


class MetaLoss(nn.Module):
    """h_phi: from what the model says about a photo to a scalar (De Min et al. 2025, section 4 and appendix).

    Args:
        outputs: d, the size of u.
        labels: The size of a target vector.
        people: How many people have an embedding of their own; row 0 is for all others.
        sees: What it is given; what it does not see has no place in its input.
    """

    def __init__(self, outputs: int, labels: int, people: int, sees: Sees = ALL) -> None:
        super().__init__()
        self.sees = sees
        if sees.identity:
            self.embedding = nn.Embedding(people + 1, EMBEDDING)
        self.network = nn.Sequential(
            nn.Linear(outputs + labels * sees.targets + EMBEDDING * sees.identity, HIDDEN),
            nn.LayerNorm(HIDDEN),
            nn.Linear(HIDDEN, HIDDEN),
            nn.GELU(),
            nn.Dropout(0.5),
            nn.LayerNorm(HIDDEN),
            nn.Linear(HIDDEN, 1),
            nn.Softplus(),
        )

    def forward(self, u: torch.Tensor, target: torch.Tensor, person: torch.Tensor | None) -> torch.Tensor:
        """Return the loss of each photo (n,) from u (n, d), target (n, K) and the person's row (n,), as far as it sees them."""
        seen = [u]
        if self.sees.targets:
            seen.append(target)
        if self.sees.identity:
            seen.append(self.embedding(person))
        return self.network(torch.cat(seen, dim=1)).squeeze(1)


@dataclass
class Photos:
    """The photos handed in, as h needs them: pixels (n, 3, S, S), target vectors (n, K), embedding rows (n,) where it sees identities."""

    pixels: torch.Tensor
    target: torch.Tensor
    person: torch.Tensor | None = None


def said(model: nn.Module, theta: Weights, pixels: torch.Tensor, kind: TaskKind, features: bool = True) -> torch.Tensor:
    """Return u (n, d): probabilities, and features unless h does not see them."""
    logits, before_head = logits_and_features(model, pixels, theta)
    shares = probabilities(logits, kind)
    return torch.cat([shares, before_head], dim=1) if features else shares


def movable(model: nn.Module, tokens: bool) -> Weights:
    """Return the parameters that take the step: all, or all but class token and position embedding (as the original code does)."""
    return {name: p for name, p in parameters(model).items() if tokens or name.rpartition(".")[2] not in TOKENS}


@dataclass(frozen=True)
class Step:
    """One step: from `theta` to theta - by_g * g.

    Attributes:
        theta: Where it starts.
        g: grad_theta M there.
        by_g: eta, or its length by that of g.
        u: What the model says there (n, d), cut from the model.
        du: dM/du (n, d); its graph to phi and u is kept, and with it h's dropout mask.
    """

    theta: Weights
    g: Weights
    by_g: float
    u: torch.Tensor
    du: torch.Tensor

    @cached_property
    def end(self) -> Weights:
        """Where it ends."""
        return {name: p - self.by_g * self.g[name] for name, p in self.theta.items()}


def walk(
    model: nn.Module, theta: Weights, h: MetaLoss, photos: Photos, kind: TaskKind, *, length: float, normalised: bool, steps: int = 1
) -> list[Step]:
    """Return the steps of unlearning, from theta on.

    Args:
        model: The classifier; its own parameters are not read where `theta` names them.
        theta: The parameters that take the steps.
        h: The loss network.
        photos: The photos handed in.
        kind: The task's kind.
        length: eta, or r, the length of the whole path.
        normalised: Which of the two.
        steps: T.

    Raises:
        OneshuiError: A gradient vanishes or is not finite, so it has no direction.
    """
    path: list[Step] = []
    for _ in range(steps):
        start = path[-1].end if path else theta
        leaves = {name: p.detach().requires_grad_() for name, p in start.items()}
        u = said(model, leaves, photos.pixels, kind, h.sees.features)
        cut = u.detach().requires_grad_()
        (du,) = torch.autograd.grad(h(cut, photos.target, photos.person).mean(), cut, create_graph=True)
        parts = torch.autograd.grad(u, list(leaves.values()), grad_outputs=du.detach(), allow_unused=True)
        g = {name: torch.zeros_like(p) if part is None else part for (name, p), part in zip(start.items(), parts, strict=True)}
        path.append(Step(start, g, factor(g, length / steps if normalised else length, normalised), cut, du))
    return path


def factor(g: Weights, length: float, normalised: bool) -> float:
    """Return what g is multiplied by in the step.

    Raises:
        OneshuiError: The gradient vanishes or is not finite, so it has no direction.
    """
    size = norm(g).item()
    if not (0 < size < float("inf")):
        raise OneshuiError("The photos give no usable gradient of the meta-loss; try another photo, or prepare again.")
    return length / size if normalised else length


def uphill(path: list[Step]) -> Weights:
    """Return U such that the path leads from theta to theta - by_g * U, by_g that of the last step; of a single step U is g itself."""
    last = path[-1]
    total = last.g
    for step in path[:-1]:
        total = {name: part + step.by_g / last.by_g * step.g[name] for name, part in total.items()}
    return total


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
    steps: int = 1,
) -> tuple[float, list[torch.Tensor], float]:
    """Return A(theta_u), dA/dphi (in the order of `h.parameters()`), and dA/dr (0 for raw steps).

    Args:
        model: The classifier; its own parameters are not read where `theta` names them.
        theta: The parameters that take the steps.
        h: The loss network, in training mode if its dropout is to act.
        photos: The photos handed in.
        objective: From (model, theta_u) to A and its gradient.
        kind: The task's kind.
        length: eta, or r.
        normalised: Which of the two.
        seed: Of the dropout masks, one a step, which all uses of its du share.
        steps: T.
    """
    with seeded(seed, "mask"):
        path = walk(model, theta, h, photos, kind, length=length, normalised=normalised, steps=steps)
    value, v = objective(model, path[-1].end)
    phi = list(h.parameters())
    by_phi, by_length = [torch.zeros_like(p) for p in phi], 0.0
    for step in reversed(path):
        along_g = v
        if normalised:
            ghat = unit(step.g)
            along = inner(ghat, v)
            by_length -= along.item() / steps
            along_g = {name: v[name] - along * ghat[name] for name in v}
        parts, by_u = _pairing(model, step, h, photos, kind, along_g)
        by_phi = [total if part is None else total + part for total, part in zip(by_phi, parts, strict=True)]
        if step is not path[0]:
            turn = _hessian_product(model, step, h, photos, kind, along_g, by_u)
            v = {name: v[name] + turn[name] for name in v}
    return value, by_phi, by_length


def _pairing(
    model: nn.Module, step: Step, h: MetaLoss, photos: Photos, kind: TaskKind, v: Weights
) -> tuple[tuple[torch.Tensor | None, ...], torch.Tensor]:
    """Return the derivatives of -by_g * <g, v> by phi, and by u where g depends on it through h."""
    # Fused attention has no forward mode; only this product and the Hessian's need the plain one.
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        udot = torch.func.jvp(lambda p: said(model, p, photos.pixels, kind, h.sees.features), (step.theta,), (v,))[1]
    pairing = -step.by_g * (step.du * udot.detach()).sum()
    *parts, by_u = torch.autograd.grad(pairing, [*h.parameters(), step.u], allow_unused=True)
    assert by_u is not None  # du depends on u: h is not linear
    return tuple(parts), by_u


def _hessian_product(model: nn.Module, step: Step, h: MetaLoss, photos: Photos, kind: TaskKind, v: Weights, by_u: torch.Tensor) -> Weights:
    """Return -by_g * H v, H the Hessian of M at the step's start."""

    def pulled_back(theta: Weights, c: torch.Tensor) -> Weights:
        """Return J_u(theta)^T c."""
        return torch.func.vjp(lambda p: said(model, p, photos.pixels, kind, h.sees.features), theta)[1](c)[0]

    scaled = {name: -step.by_g * part for name, part in v.items()}
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        return torch.func.jvp(pulled_back, (step.theta, step.du.detach()), (scaled, by_u))[1]
