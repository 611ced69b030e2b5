"""PGU, Projected-Gradient Unlearning: climb the loss of the photos handed in, in directions that the training photos do not use.

Hoang, Rana, Gupta, Venkatesh: "Learn to Unlearn for Deep Neural Networks: Minimizing Unlearning Interference with Gradient Projection",
WACV 2024. The mathematics is in `subspace`. `prepare` keeps the covariance of every layer's inputs over the training photos; `apply` finds
the core spaces and takes projected steps, so gamma is chosen when somebody asks. Weights of linear layers and convolutions move, those of
grouped convolutions group by group; whatever has no core space (biases, norms, tokens) stays.

The paper subtracts the covariance of the photos to forget, which are training photos there. Those handed in here are not, so nothing is
subtracted unless asked for, and then what falls below zero is taken as zero.
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
        0.9, "Share of the energy of a layer's inputs that steps keep out of.", minimum=0, maximum=1, at="apply", search=(0.5, 0.999)
    )
    lr: float = option(0.1, "Factor of the projected gradient.", minimum=0, at="apply", search=(1e-5, 1.0))
    epochs: int = option(5, "Passes over the photos handed in.", minimum=1, at="apply", search=(1, 20))
    batch_size: int = option(32, "Photos of a step; more that are handed in take their turns, in order.", minimum=1, at="apply")
    subtract: bool = option(False, "Take the photos handed in out of the covariances, as the paper does with training photos.", at="apply")
    chunk: int = option(32, "Images a forward pass of the covariances; memory grows with it, the result does not change.", minimum=1)


class PGU(Method[PGUOptions]):
    """Gradient ascent outside of the core spaces of the training photos."""

    summary = "steps up the loss of the photos handed in, kept out of the directions that training photos use"
    paper = "Hoang et al., Learn to Unlearn for Deep Neural Networks, WACV 2024"
    needs = Needs(prepare=frozenset({"train"}), apply=frozenset({"support"}))
    options = PGUOptions
    prepares = "required"
    presets = ("oneshui_plugins.presets", "pgu.json")

    def prepare(self, model: nn.Module, data: DataAccess, options: PGUOptions, context: Context) -> Artefact:
        """Add up the covariances of the layers' inputs over the training photos."""
        import torch

        from oneshui_hf.methods import Artefact

        train: FaceSet = data.train
        weights = dict(model.named_parameters())
        found = self.covariances(model, len(train), lambda some: train.batch(some, context.device)[0], options.chunk, context)
        return Artefact(
            tensors={name: c.matrix.to(torch.promote_types(weights[name].dtype, torch.float32)) for name, c in found.items()},
            values={"rows": {name: c.rows for name, c in found.items()}},
        )

    def cost(self, model: nn.Module, data: DataAccess, options: PGUOptions, context: Context) -> Cost:
        """Return one pass over the training photos, and the size of the covariances."""
        one = self.covariances(model, 1, lambda some: data.train.batch(some, context.device)[0], 1, context)  # a photo tells their shapes
        return Cost(forward=len(data.train), bytes=4 * sum(covariance.matrix.numel() for covariance in one.values()))

    def apply(
        self,
        model: nn.Module,
        data: DataAccess,
        artefact: Artefact | None,
        options: PGUOptions,
        context: Context,
    ) -> nn.Module:
        """Return the model after some epochs of W <- W + lr * G (I - M M^T), G the gradient of the mean loss on a batch of photos."""
        import torch

        from oneshui_hf.methods import norm, parameters

        from .common.input_covariance import outside

        assert artefact is not None  # the core refuses to apply what was not prepared
        request: Request = data.support
        cores = self._cores(model, request, artefact, options, context)
        new = copy.deepcopy(model).eval()
        weights = {name: parameter for name, parameter in new.named_parameters() if name in cores}
        batches = torch.arange(len(request), device=request.pixels.device).split(options.batch_size)
        for batch in batches * options.epochs:
            loss = self.loss(new(pixel_values=request.pixels[batch]).logits, request.labels[batch], context.task.kind).mean()
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            with torch.no_grad():
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                    if gradient is not None:
                        weight.add_(outside(gradient, cores[name]), alpha=options.lr)
        before, after = parameters(model), parameters(new)
        length = norm({name: after[name] - before[name] for name in weights}).item()
        if not math.isfinite(length):
            raise OneshuiError("The steps left all bounds, and the model with them; take a smaller --lr, or fewer --epochs.")
        context.report |= {"step_length": length}
        return new.train(model.training)

    def _cores(
        self, model: nn.Module, request: Request, artefact: Artefact, options: PGUOptions, context: Context
    ) -> dict[str, torch.Tensor]:
        """Return the basis of each weight's core space.

        Raises:
            UsageError: The core spaces leave no direction to move in.
        """
        from .common.input_covariance import Covariance

        kept = {name: Covariance(matrix.to(context.device), artefact.values["rows"][name]) for name, matrix in artefact.tensors.items()}
        matrices = {name: covariance.matrix for name, covariance in kept.items()}
        if options.subtract:
            handed_in = self.covariances(model, len(request), lambda some: request.pixels[some], options.chunk, context)
            matrices = {name: covariance.less(handed_in[name]) for name, covariance in kept.items()}
        cores = {name: self.core(matrix, options.gamma) for name, matrix in matrices.items()}

        directions = sum(matrix.shape[0] * matrix.shape[1] for matrix in matrices.values())
        used = sum(round(basis.square().sum().item()) for basis in cores.values())  # a column has length 1, or 0 where a group needs fewer
        if used == directions:
            raise UsageError(
                f"With --gamma {options.gamma:g} the training photos use every direction, so nothing can move; take a smaller one."
            )
        context.report |= {"core_share": used / directions}
        return {name: basis.to(model.get_parameter(name).dtype) for name, basis in cores.items()}

    # What PGU is made of, each a function of its own, so that a version of it can differ in one.

    @staticmethod
    def loss(logits: torch.Tensor, labels: torch.Tensor, kind: TaskKind) -> torch.Tensor:
        """Return the loss of each photo handed in, (n,)."""
        from oneshui_hf.methods import losses

        return losses(logits, labels, kind)

    @staticmethod
    def covariances(
        model: nn.Module, photos: int, load: Callable[[torch.Tensor], torch.Tensor], chunk: int, context: Context
    ) -> dict[str, Covariance]:
        """Return the covariance of every weight's input rows over some photos, by the weight's name."""
        from .common.input_covariance import covariances

        return covariances(model, photos, load, chunk, context)

    @staticmethod
    def core(covariance: torch.Tensor, gamma: float) -> torch.Tensor:
        """Return M (g, d, k), an orthonormal basis of the core space of a covariance (g, d, d)."""
        from .common.input_covariance import core

        return core(covariance, gamma)
