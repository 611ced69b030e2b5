"""PGU, Projected-Gradient Unlearning: ascend the loss of the support images in directions that the training photos do not use.

Hoang, Rana, Gupta, Venkatesh: "Learn to Unlearn for Deep Neural Networks: Minimizing Unlearning Interference with Gradient Projection",
WACV 2024. The mathematics is in `common.input_covariance`. `prepare` stores the covariances of the layers' inputs over the training photos;
`apply` computes the core spaces and takes projected steps, so gamma can be chosen at request time. The weights of linear layers and
convolutions are updated, those of grouped convolutions group by group. Parameters without a core space (biases, norms, tokens) are not.

The paper subtracts the covariance of the photos to forget, which are training photos there. The support images are not, so nothing is
subtracted by default; with `--subtract-support`, eigenvalues that become negative are taken as zero.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oneshui_hf.methods import Context, Cost, DataAccess, Method, Needs, OneshuiError, UsageError, option

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from oneshui_hf.methods import Artefact, FaceSet, Request, TaskKind

    from .common.input_covariance import Covariance


@dataclass(frozen=True)
class PGUOptions:
    """Options of PGU."""

    gamma: float = option(
        0.9,
        "Share of the energy of a layer's inputs that is protected from the steps.",
        minimum=0,
        maximum=1,
        at="apply",
        search=(0.5, 0.999),
    )
    lr: float = option(0.1, "Factor of the projected gradient.", minimum=0, at="apply", search=(1e-5, 1.0))
    epochs: int = option(5, "Passes over the support images.", minimum=1, at="apply", search=(1, 20))
    batch_size: int = option(32, "Support images per step; more are processed in batches, in order.", minimum=1, at="apply")
    subtract_support: bool = option(
        False,
        "Subtract the covariance of the support images, as the paper does with the training photos to forget.",
        at="apply",
        formerly=("subtract",),
    )
    chunk: int = option(32, "Images per forward pass for the covariances; affects memory, not the result.", minimum=1)


class PGU(Method[PGUOptions]):
    """Gradient ascent outside of the core spaces of the training photos."""

    summary = "ascends the loss of the support images in directions that the training photos do not use"
    paper = "Hoang et al., Learn to Unlearn for Deep Neural Networks, WACV 2024"
    needs = Needs(prepare=frozenset({"train"}), apply=frozenset({"support"}))
    options = PGUOptions
    prepares = "required"
    presets = ("oneshui_plugins.presets", "pgu.json")

    def prepare(self, model: nn.Module, data: DataAccess, options: PGUOptions, context: Context) -> Artefact:
        """Compute the covariances of the layers' inputs over the training photos."""
        import torch

        from oneshui_hf.methods import Artefact

        train: FaceSet = data.train
        weights = dict(model.named_parameters())
        found = self.input_covariances(model, len(train), lambda rows: train.batch(rows, context.device)[0], options.chunk, context)
        return Artefact(
            tensors={name: c.matrix.to(torch.promote_types(weights[name].dtype, torch.float32)) for name, c in found.items()},
            values={"rows": {name: c.num_rows for name, c in found.items()}},
        )

    def cost(self, model: nn.Module, data: DataAccess, options: PGUOptions, context: Context) -> Cost:
        """Return one pass over the training photos, and the size of the covariances."""
        # One photo is enough to find the shapes.
        one = self.input_covariances(model, 1, lambda rows: data.train.batch(rows, context.device)[0], 1, context)
        return Cost(forward=len(data.train), bytes=4 * sum(covariance.matrix.numel() for covariance in one.values()))

    def apply(
        self,
        model: nn.Module,
        data: DataAccess,
        artefact: Artefact | None,
        options: PGUOptions,
        context: Context,
    ) -> nn.Module:
        """Return the model after some epochs of W <- W + lr * G (I - M M^T), with G the gradient of the mean loss on a batch."""
        import torch

        from oneshui_hf.methods import norm, parameters

        from .common.input_covariance import project_out

        assert artefact is not None  # the core requires preparation
        request: Request = data.support
        bases = self._core_spaces(model, request, artefact, options, context)
        new = copy.deepcopy(model).eval()
        weights = {name: parameter for name, parameter in new.named_parameters() if name in bases}
        batches = torch.arange(len(request), device=request.pixels.device).split(options.batch_size)
        for batch in batches * options.epochs:
            loss = self.loss(new(pixel_values=request.pixels[batch]).logits, request.labels[batch], context.task.kind).mean()
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            with torch.no_grad():
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                    if gradient is not None:
                        weight.add_(project_out(gradient, bases[name]), alpha=options.lr)
        before, after = parameters(model), parameters(new)
        length = norm({name: after[name] - before[name] for name in weights}).item()
        if not math.isfinite(length):
            raise OneshuiError("The steps diverged: the weights are not finite; use a smaller --lr or fewer --epochs.")
        context.report |= {"step_length": length}
        return new.train(model.training)

    def _core_spaces(
        self, model: nn.Module, request: Request, artefact: Artefact, options: PGUOptions, context: Context
    ) -> dict[str, torch.Tensor]:
        """Return the basis of each weight's core space.

        Raises:
            UsageError: The core spaces leave no direction for a step.
            OneshuiError: The artefact is damaged.
        """
        from .common.input_covariance import Covariance

        support = self.input_covariances(model, len(request), lambda rows: request.pixels[rows], options.chunk, context)
        artefact.require_tensors({name: covariance.matrix.shape for name, covariance in support.items()})
        counts = artefact.values.get("rows")
        if not isinstance(counts, dict) or not all(isinstance(counts.get(name), int) and counts[name] > 0 for name in support):
            raise OneshuiError("The artefact is damaged (a number of rows is missing); prepare again.")
        train = {name: Covariance(matrix.to(context.device), counts[name]) for name, matrix in artefact.tensors.items()}
        matrices = {name: covariance.matrix for name, covariance in train.items()}
        if options.subtract_support:
            matrices = {name: covariance.minus(support[name]) for name, covariance in train.items()}
        bases = {name: self.core_space(matrix, options.gamma) for name, matrix in matrices.items()}

        directions = sum(matrix.shape[0] * matrix.shape[1] for matrix in matrices.values())
        used = sum(round(basis.square().sum().item()) for basis in bases.values())  # a column has norm 1, or 0 in a group that needs fewer
        if used == directions:
            raise UsageError(
                f"With --gamma {options.gamma:g} the training photos use every direction, so no weight can change; use a smaller one."
            )
        context.report |= {"core_share": used / directions}
        return {name: basis.to(model.get_parameter(name).dtype) for name, basis in bases.items()}

    # The parts of PGU as separate functions, so that a variant can override one of them.

    @staticmethod
    def loss(logits: torch.Tensor, labels: torch.Tensor, kind: TaskKind) -> torch.Tensor:
        """Return the loss of each support image, (n,)."""
        from oneshui_hf.methods import losses

        return losses(logits, labels, kind)

    @staticmethod
    def input_covariances(
        model: nn.Module, num_images: int, load: Callable[[torch.Tensor], torch.Tensor], chunk: int, context: Context
    ) -> dict[str, Covariance]:
        """Return the covariance of every weight's input rows over some photos, by the weight's name."""
        from .common.input_covariance import input_covariances

        return input_covariances(model, num_images, load, chunk, context)

    @staticmethod
    def core_space(covariance: torch.Tensor, gamma: float) -> torch.Tensor:
        """Return M (g, d, k), an orthonormal basis of the core space of a covariance (g, d, d)."""
        from .common.input_covariance import core_space

        return core_space(covariance, gamma)
