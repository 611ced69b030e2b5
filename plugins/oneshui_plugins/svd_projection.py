"""SVD projection: remove from the weights' inputs what the support images use and the training photos do not.

Kodge, Saha, Roy: "Deep Unlearning: Fast and Efficient Gradient-free Class Forgetting", TMLR 2024 (arXiv 2312.00761). For each layer, the
singular value decomposition R = U S V^T of its inputs (one column per token or patch) over the photos to retain, and over those to forget,
gives a space whose directions are scaled by their importance:

    lambda_i = alpha s_i^2 / ((alpha - 1) s_i^2 + 1),    s_i^2 relative to the sum of all of them    (0 to 1; larger for a larger alpha)
    P = U diag(lambda) U^T                               for retain (P_r, alpha_r) and for forget (P_f, alpha_f)
    P_dis = P_f (I - P_r)                                what is left of the forget space without the retain space
    W <- W (I - P_dis)^T

With C = R R^T / trace(R R^T), P = alpha C ((alpha - 1) C + I)^-1, so no decomposition is needed, and `prepare` stores only the covariances
of the layers' inputs (`common.input_covariance`): both factors can be chosen at request time. Linear layers and convolutions are projected,
grouped convolutions group by group; biases, norms and tokens keep their values.

In the paper whole classes are forgotten, and the photos to retain are without them. Here the retain space is that of all training photos,
since nobody has asked yet when it is computed; the forget space is that of the support images, which are not among them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oneshui_hf.methods import Context, Cost, DataAccess, Method, Needs, OneshuiError, option

if TYPE_CHECKING:
    import torch
    from torch import nn

    from oneshui_hf.methods import Artefact, FaceSet, Request


@dataclass(frozen=True)
class SVDProjectionOptions:
    """Options of SVD projection."""

    retain_alpha: float = option(
        100.0,
        "Factor alpha_r: larger values protect more directions of the training photos' inputs.",
        minimum=1e-6,
        at="apply",
        search=(1.0, 1e6),
    )
    forget_alpha: float = option(
        10.0,
        "Factor alpha_f: larger values remove more directions of the support images' inputs.",
        minimum=1e-6,
        at="apply",
        search=(0.01, 100.0),
    )
    chunk: int = option(32, "Images per forward pass for the covariances; affects memory, not the result.", minimum=1)


class SVDProjection(Method[SVDProjectionOptions]):
    """One projection of each weight."""

    summary = "removes from the weights what the support images' layer inputs use and the training photos' do not; no gradients"
    paper = "Kodge et al., Deep Unlearning: Fast and Efficient Gradient-free Class Forgetting, TMLR 2024"
    needs = Needs(prepare=frozenset({"train"}), apply=frozenset({"support"}))
    options = SVDProjectionOptions
    prepares = "required"

    def prepare(self, model: nn.Module, data: DataAccess, options: SVDProjectionOptions, context: Context) -> Artefact:
        """Compute the covariances of the layers' inputs over the training photos."""
        import torch

        from oneshui_hf.methods import Artefact

        from .common.input_covariance import input_covariances

        train: FaceSet = data.train
        weights = dict(model.named_parameters())
        found = input_covariances(model, len(train), lambda rows: train.batch(rows, context.device)[0], options.chunk, context)
        return Artefact(tensors={name: c.matrix.to(torch.promote_types(weights[name].dtype, torch.float32)) for name, c in found.items()})

    def cost(self, model: nn.Module, data: DataAccess, options: SVDProjectionOptions, context: Context) -> Cost:
        """Return one pass over the training photos, and the size of the covariances."""
        from .common.input_covariance import input_covariances

        # One photo is enough to find the shapes.
        one = input_covariances(model, 1, lambda rows: data.train.batch(rows, context.device)[0], 1, context)
        return Cost(forward=len(data.train), bytes=4 * sum(covariance.matrix.numel() for covariance in one.values()))

    def apply(
        self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: SVDProjectionOptions, context: Context
    ) -> nn.Module:
        """Return the model with each weight replaced by W (I - P_dis)^T.

        Raises:
            OneshuiError: The artefact is damaged or of another model, or the inputs of a layer are zero or not finite.
        """
        import torch

        from oneshui_hf.methods import norm, parameters

        from .common.input_covariance import input_covariances

        assert artefact is not None  # the core requires preparation
        request: Request = data.support
        support = input_covariances(model, len(request), lambda rows: request.pixels[rows], options.chunk, context)
        artefact.require_tensors({name: covariance.matrix.shape for name, covariance in support.items()})
        new = copy.deepcopy(model)
        weights = dict(new.named_parameters())
        with torch.no_grad():
            for name in context.reporter.track(sorted(support), "Projecting weights"):
                retain = scaled_projection(artefact.tensors[name].to(context.device), options.retain_alpha)
                forget = scaled_projection(support[name].matrix, options.forget_alpha)
                weights[name].copy_(remove_discriminatory(weights[name], retain, forget))
        before, after = parameters(model), parameters(new)
        length = norm({name: after[name] - before[name] for name in support})
        if not length.isfinite():
            raise OneshuiError("The projected weights are not finite, so nothing was unlearned; check the photos and the model's weights.")
        context.report |= {"step_length": length.item()}
        return new


def scaled_projection(covariance: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return P (g, d, d), float64: the projection to the directions of a layer's inputs, each scaled by its importance.

    Args:
        covariance: The uncentred covariance of the inputs up to any factor, (g, d, d). Where it is zero, so is P.
        alpha: The scaling factor, above 0.
    """
    import torch

    covariance = covariance.double()
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    relative = covariance / torch.where(trace > 0, trace, 1.0)[:, None, None]
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return alpha * torch.linalg.solve((alpha - 1) * relative + identity, relative)


def remove_discriminatory(weight: torch.Tensor, retain: torch.Tensor, forget: torch.Tensor) -> torch.Tensor:
    """Return W (I - P_dis)^T with P_dis = P_f (I - P_r), in the shape and type of the weight.

    Args:
        weight: W, (out, in) or (out, in / g, kh, kw).
        retain: P_r, (g, d, d).
        forget: P_f, (g, d, d).
    """
    w = weight.reshape(len(retain), -1, retain.shape[-1]).double()  # (g, out / g, d)
    # P_f and P_r are symmetric, so the transpose of P_dis is (I - P_r) P_f.
    removed = (w - w @ retain) @ forget
    return (w - removed).view_as(weight).to(weight.dtype)
