"""The loss network h_phi of MetaUnlearn, the unlearning steps, and the exact gradient of the meta-objective by phi.

u(theta) (n, d) is the model's output for the n support images: the probabilities and the input of its head. The network h_phi maps
[u, target, identity embedding] to a scalar; M(phi, theta) is its mean over the images. Unlearning is one step down its gradient,

    theta_u = theta - eta * grad_theta M                  (raw)
    theta_u = theta - r * g / ||g||,  g = grad_theta M    (normalised)

and phi is trained to reduce a meta-objective A(theta_u). With v = grad A at theta_u, the chain rule gives

    dA/dphi = -eta * d/dphi <grad_theta M, v> = -eta * d/dphi sum_i <du_i, udot_i>

where du_i = dM/du_i depends on phi through h_phi alone and udot = J_u(theta) v is one Jacobian-vector product (forward mode) on the support
images. This is exact, and the model is never differentiated twice on the forget images. For the normalised step, with ghat = g / ||g||, v
is replaced by (v - ghat <ghat, v>) / ||g|| and eta by r, and the length has dA/dr = -<ghat, v>. With a length r_l for each layer l this
holds layer by layer: ghat_l = g_l / ||g_l||, v_l is replaced by r_l (v_l - ghat_l <ghat_l, v_l>) / ||g_l||, and dA/dr_l = -<ghat_l, v_l>.

Each of T steps uses eta, or r / T. Their contributions to dA/dphi are summed from the last step to the first. Between them v is propagated
back over a step by

    v_t = v_(t+1) - H_t v'_(t+1)

(v' is eta v, or v projected and multiplied as above), with H_t the Hessian of M at theta_t. Since grad_theta M = J_u^T du, the product
H_t v is the derivative of J_u(theta)^T c along (v, d/du <du, udot>) at c = du: forward over reverse mode, on the support images alone. A
single step needs no Hessian product.

Source of h_phi and M: De Min et al. 2025, section 4 and appendix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from oneshui_hf.methods import (
    Context,
    OneshuiError,
    TaskKind,
    Weights,
    feature_dim,
    logits_and_features,
    parameters,
    probabilities,
    seeded,
)

if TYPE_CHECKING:
    from .options import MetaUnlearnOptions

EMBEDDING_SIZE = 64  # of an identity
HIDDEN_SIZE = 512
UNKNOWN_ROW = 0  # row of the embedding table for identities without their own row
TOKEN_PARAMETERS = ("cls_token", "position_embeddings", "distillation_token", "mask_token")


@dataclass(frozen=True)
class MetaLossInputs:
    """Inputs of h_phi in addition to the probabilities: the input of the head, the identity's embedding, the labels."""

    features: bool = True
    identity: bool = True
    targets: bool = True


ALL_INPUTS = MetaLossInputs()


class MetaLoss(nn.Module):
    """The loss network h_phi: maps the model's output for a photo to a scalar (De Min et al. 2025, section 4 and appendix).

    Args:
        output_size: d, the size of u.
        num_labels: K, the size of a target vector.
        num_identities: Number of identities with their own embedding row; row 0 is for all others.
        inputs: Which inputs h_phi has; its first layer has no columns for the others.
    """

    def __init__(self, output_size: int, num_labels: int, num_identities: int, inputs: MetaLossInputs = ALL_INPUTS) -> None:
        super().__init__()
        self.inputs = inputs
        if inputs.identity:
            self.embedding = nn.Embedding(num_identities + 1, EMBEDDING_SIZE)
        self.network = nn.Sequential(
            nn.Linear(output_size + num_labels * inputs.targets + EMBEDDING_SIZE * inputs.identity, HIDDEN_SIZE),
            nn.LayerNorm(HIDDEN_SIZE),
            nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE),
            nn.GELU(),
            nn.Dropout(0.5),
            nn.LayerNorm(HIDDEN_SIZE),
            nn.Linear(HIDDEN_SIZE, 1),
            nn.Softplus(),
        )

    def forward(self, u: torch.Tensor, targets: torch.Tensor, identity_rows: torch.Tensor | None) -> torch.Tensor:
        """Return the loss of each photo (n,) from u (n, d), targets (n, K) and embedding rows (n,); inputs that h_phi lacks are ignored."""
        columns = [u]
        if self.inputs.targets:
            columns.append(targets)
        if self.inputs.identity:
            columns.append(self.embedding(identity_rows))
        return self.network(torch.cat(columns, dim=1)).squeeze(1)


def build_loss_network(model: nn.Module, context: Context, num_identities: int, options: MetaUnlearnOptions) -> MetaLoss:
    """Return a loss network for a model's output size, initialised from the context's seed."""
    num_labels = len(context.task.label_names)
    inputs = MetaLossInputs(features=options.use_features, identity=options.use_identity, targets=options.use_targets)
    with seeded(context.seed, "phi"):
        return MetaLoss(num_labels + feature_dim(model) * inputs.features, num_labels, num_identities, inputs)


@dataclass
class SupportImages:
    """Support images as inputs of h_phi.

    Attributes:
        pixels: (n, 3, S, S).
        targets: Target vectors (n, K).
        identity_rows: Embedding rows (n,), if h_phi has the identity as an input.
    """

    pixels: torch.Tensor
    targets: torch.Tensor
    identity_rows: torch.Tensor | None = None


def outputs(model: nn.Module, theta: Weights, pixels: torch.Tensor, kind: TaskKind, features: bool = True) -> torch.Tensor:
    """Return u (n, d): the probabilities, and the input of the head if `features`."""
    logits, before_head = logits_and_features(model, pixels, theta)
    p = probabilities(logits, kind)
    return torch.cat([p, before_head], dim=1) if features else p


def trainable_parameters(model: nn.Module, update_tokens: bool) -> Weights:
    """Return the parameters that unlearning updates: all, or all but class token and position embedding (as in the original code)."""
    return {name: p for name, p in parameters(model).items() if update_tokens or name.rpartition(".")[2] not in TOKEN_PARAMETERS}


def layer_of(name: str) -> str:
    """Return the layer of a parameter: its name up to the first number (a block), or else its first two components."""
    words = name.split(".")[:-1]
    number = next((index for index, word in enumerate(words) if word.isdecimal()), 1)
    return ".".join(words[: number + 1])


def step_groups(theta: Weights, length_by: str) -> dict[str, int]:
    """Return the index of each parameter's step length: one for the model, or one per layer, in the order of the parameters."""
    keys = {name: layer_of(name) if length_by == "layer" else "" for name in theta}
    index = {key: number for number, key in enumerate(dict.fromkeys(keys.values()))}
    return {name: index[key] for name, key in keys.items()}


@dataclass(frozen=True)
class StepSize:
    """The size of the steps of unlearning.

    Attributes:
        lengths: eta; or the length r of the whole path by group of parameters.
        group_of: For each parameter, its group's index in `lengths`; None if the step is raw and `lengths` is eta.
    """

    lengths: tuple[float, ...]
    group_of: Mapping[str, int] | None = None

    @classmethod
    def raw(cls, eta: float) -> StepSize:
        """Steps of eta times the gradient."""
        return cls((eta,))

    @classmethod
    def normalised(cls, length: float, theta: Weights) -> StepSize:
        """Steps along the unit gradient of all parameters."""
        return cls((length,), dict.fromkeys(theta, 0))

    def factors(self, g: Weights, steps: int) -> tuple[dict[str, float], list[float]]:
        """Return the factor of each parameter's gradient in one of `steps` steps, and the norm of g in each group (empty if raw).

        A group whose gradient is zero is not updated.

        Raises:
            OneshuiError: The whole gradient is zero or not finite, so it has no direction.
        """
        names = self.group_of if self.group_of is not None else dict.fromkeys(g, 0)
        squares = [0.0] * len(self.lengths)
        for name, part in g.items():
            squares[names[name]] += (part * part).sum().item()
        if not 0 < sum(squares) < float("inf"):
            raise OneshuiError("The gradient of the meta-loss on these photos is zero or not finite; try another photo, or prepare again.")
        if self.group_of is None:
            return dict.fromkeys(g, self.lengths[0]), []
        norms = [square**0.5 for square in squares]
        by_group = [length / steps / size if size else 0.0 for length, size in zip(self.lengths, norms, strict=True)]
        return {name: by_group[group] for name, group in names.items()}, norms


@dataclass(frozen=True)
class UnlearningStep:
    """One step: theta_(t+1) = theta_t - eta_t * g_t.

    Attributes:
        theta: theta_t.
        g: grad_theta M at theta_t.
        eta: eta_t of each parameter: eta of a raw step, r / (T ||g_t||) of a normalised one.
        norms: ||g_t|| of each group of parameters of a normalised step.
        u: The outputs at theta_t (n, d), detached from the model.
        du: dM/du (n, d); its graph to phi and u is kept, which fixes the dropout mask of h_phi.
    """

    theta: Weights
    g: Weights
    eta: dict[str, float]
    norms: list[float]
    u: torch.Tensor
    du: torch.Tensor

    @cached_property
    def theta_next(self) -> Weights:
        """theta_(t+1)."""
        return {name: p - self.eta[name] * self.g[name] for name, p in self.theta.items()}


def unlearning_steps(
    model: nn.Module, theta: Weights, h: MetaLoss, images: SupportImages, kind: TaskKind, size: StepSize, steps: int = 1
) -> list[UnlearningStep]:
    """Return the steps of unlearning, from theta on.

    Args:
        model: The classifier; parameters in `theta` replace its own.
        theta: The parameters to update.
        h: The loss network.
        images: The support images.
        kind: The task kind.
        size: Size of the steps.
        steps: T.

    Raises:
        OneshuiError: A gradient is zero or not finite, so it has no direction.
    """
    path: list[UnlearningStep] = []
    for _ in range(steps):
        start = path[-1].theta_next if path else theta
        leaves = {name: p.detach().requires_grad_() for name, p in start.items()}
        u = outputs(model, leaves, images.pixels, kind, h.inputs.features)
        detached = u.detach().requires_grad_()
        (du,) = torch.autograd.grad(h(detached, images.targets, images.identity_rows).mean(), detached, create_graph=True)
        parts = torch.autograd.grad(u, list(leaves.values()), grad_outputs=du.detach(), allow_unused=True)
        g = {name: torch.zeros_like(p) if part is None else part for (name, p), part in zip(start.items(), parts, strict=True)}
        path.append(UnlearningStep(start, g, *size.factors(g, steps), detached, du))
    return path


def total_update(path: list[UnlearningStep]) -> Weights:
    """Return U such that theta - U is the end of the path."""
    return {name: sum((step.eta[name] * step.g[name] for step in path[1:]), path[0].eta[name] * path[0].g[name]) for name in path[0].g}


def meta_gradient(
    model: nn.Module,
    theta: Weights,
    h: MetaLoss,
    images: SupportImages,
    objective: Callable[[nn.Module, Weights], tuple[float, Weights]],
    kind: TaskKind,
    size: StepSize,
    *,
    seed: int,
    steps: int = 1,
) -> tuple[float, list[torch.Tensor], list[float]]:
    """Return A(theta_u), dA/dphi (in the order of `h.parameters()`), and dA/dr for each length (0 for raw steps).

    Args:
        model: The classifier; parameters in `theta` replace its own.
        theta: The parameters to update.
        h: The loss network, in training mode if its dropout is to be active.
        images: The support images.
        objective: Maps (model, theta_u) to A and its gradient by theta_u.
        kind: The task kind.
        size: Size of the steps.
        seed: Of the dropout masks. Each step has one mask, which all uses of its du share.
        steps: T.
    """
    with seeded(seed, "mask"):
        path = unlearning_steps(model, theta, h, images, kind, size, steps)
    value, v = objective(model, path[-1].theta_next)
    phi = list(h.parameters())
    by_phi, by_length = [torch.zeros_like(p) for p in phi], [0.0] * len(size.lengths)
    for step in reversed(path):
        projected = v
        if size.group_of is not None:
            along = _along(step, v, size.group_of)
            for group, slope in enumerate(along):
                by_length[group] -= slope / steps
            projected = {
                name: v[name] - (along[group] / step.norms[group] if step.norms[group] else 0.0) * step.g[name]
                for name, group in size.group_of.items()
            }
        scaled = {name: step.eta[name] * part for name, part in projected.items()}
        parts, by_u = _inner_product_gradients(model, step, h, images, kind, scaled)
        by_phi = [total if part is None else total + part for total, part in zip(by_phi, parts, strict=True)]
        if step is not path[0]:
            hv = _hessian_product(model, step, h, images, kind, scaled, by_u)
            v = {name: v[name] + hv[name] for name in v}
    return value, by_phi, by_length


def _along(step: UnlearningStep, v: Weights, group_of: Mapping[str, int]) -> list[float]:
    """Return <ghat_l, v_l> for each group l of parameters; 0 if its gradient is zero."""
    inner_products = [0.0] * len(step.norms)
    for name, group in group_of.items():
        inner_products[group] += (step.g[name] * v[name]).sum().item()
    return [product / size if size else 0.0 for product, size in zip(inner_products, step.norms, strict=True)]


def _inner_product_gradients(
    model: nn.Module, step: UnlearningStep, h: MetaLoss, images: SupportImages, kind: TaskKind, v: Weights
) -> tuple[tuple[torch.Tensor | None, ...], torch.Tensor]:
    """Return the derivatives of -<g_t, v> by phi, and by u as far as du depends on it through h_phi."""
    # Fused attention has no forward mode. Only this product and the Hessian product need the unfused one.
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        udot = torch.func.jvp(lambda p: outputs(model, p, images.pixels, kind, h.inputs.features), (step.theta,), (v,))[1]
    product = -(step.du * udot.detach()).sum()
    *parts, by_u = torch.autograd.grad(product, [*h.parameters(), step.u], allow_unused=True)
    assert by_u is not None  # du depends on u, since h_phi is not linear
    return tuple(parts), by_u


def _hessian_product(
    model: nn.Module, step: UnlearningStep, h: MetaLoss, images: SupportImages, kind: TaskKind, v: Weights, by_u: torch.Tensor
) -> Weights:
    """Return -H_t v, with H_t the Hessian of M at theta_t."""

    def pull_back(theta: Weights, c: torch.Tensor) -> Weights:
        """Return J_u(theta)^T c."""
        return torch.func.vjp(lambda p: outputs(model, p, images.pixels, kind, h.inputs.features), theta)[1](c)[0]

    negative = {name: -part for name, part in v.items()}
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        return torch.func.jvp(pull_back, (step.theta, step.du.detach()), (negative, by_u))[1]
