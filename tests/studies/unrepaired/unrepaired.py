"""PGU, SSD and JiT with the errors that they have elsewhere, so that a table can show what repairing them is worth. Not to be used.

    pip install tests/studies/unrepaired      then unrepaired-pgu, unrepaired-ssd and unrepaired-jit are methods like any other

Each class inherits the product's method and changes the broken lines alone.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oneshui_hf.methods import Context, DataAccess, option
from oneshui_plugins.jit import JiT, JiTOptions
from oneshui_plugins.pgu import PGU, PGUOptions
from oneshui_plugins.ssd import SSD, SSDOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from torch import nn

    from oneshui_hf.methods import Artefact, TaskKind
    from oneshui_plugins.common.input_covariance import Covariance, Layer
    from oneshui_plugins.common.parameter_importance import Batch, Gradients, Value, Weights


@dataclass(frozen=True)
class UnrepairedPGUOptions(PGUOptions):
    subtract: bool = option(True, "Take the photos handed in out of the covariances, in which they never were.", at="apply")


class UnrepairedPGU(PGU):
    summary = "pgu as it is elsewhere: two attributes are forgotten, patches overlap, energies are negative"
    options = UnrepairedPGUOptions

    @staticmethod
    def loss(logits: torch.Tensor, labels: torch.Tensor, kind: TaskKind) -> torch.Tensor:
        """Take the labels 0 and 1 of K attributes for numbers of classes: -log p[0] or -log p[1], for each attribute."""
        from torch.nn.functional import logsigmoid

        if kind == "single_label":
            return PGU.loss(logits, labels, kind)
        return -logsigmoid(logits).gather(1, labels.long()).mean(dim=1)  # a boolean mask is meant

    @staticmethod
    def covariances(
        model: nn.Module, photos: int, load: Callable[[torch.Tensor], torch.Tensor], chunk: int, context: Context
    ) -> dict[str, Covariance]:
        """Take a patch at every place, also where the convolution takes none."""
        from oneshui_plugins.common.input_covariance import covariances

        return covariances(model, photos, load, chunk, context, rows_of=stride_one)

    @staticmethod
    def core(covariance: torch.Tensor, gamma: float) -> torch.Tensor:
        """Let negative energies count, which a covariance has where rows were taken from it that were not in it."""
        import torch

        energies, vectors = torch.linalg.eigh(covariance.double())
        energies, vectors = energies.flip(-1), vectors.flip(-1)
        reached = energies.cumsum(-1)
        needed = reached - energies < gamma * reached[..., -1:]
        most = int(needed.sum(-1).max())
        return (vectors * needed.unsqueeze(-2))[..., :most]


def stride_one(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    from torch import nn

    from oneshui_plugins.common.input_covariance import input_rows

    if isinstance(layer, nn.Conv2d):
        layer = copy.copy(layer)
        layer.stride = (1, 1)
    return input_rows(layer, x)


@dataclass(frozen=True)
class UnrepairedSSDOptions(SSDOptions):
    chunk: int = option(32, "Training photos of a batch, whose mean gradient is squared; the result depends on it.", minimum=1)


class UnrepairedSSD(SSD):
    summary = "ssd as it is elsewhere: the mean gradient of a batch is squared, so importances depend on its size"
    options = UnrepairedSSDOptions

    def apply(
        self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: UnrepairedSSDOptions, context: Context
    ) -> nn.Module:
        """Take the photos handed in as one batch."""
        return super().apply(model, data, artefact, dataclasses.replace(options, chunk=len(data.support)), context)

    def _importances(
        self, model: nn.Module, batch: Batch, positions: torch.Tensor, options: UnrepairedSSDOptions, context: Context
    ) -> Weights:
        from oneshui_plugins.common.parameter_importance import importances

        kind = context.task.kind
        return importances(
            model,
            batch,
            positions,
            lambda logits, labels: self.value(logits, labels, kind),
            self.power,
            options.chunk,
            context,
            differentiate=per_batch,
        )


def per_batch(model: nn.Module, value: Value, chunk: int) -> Gradients:
    """In place of each photo's gradient, take the gradient of its batch's mean value."""
    import torch

    def of_all(theta: Weights, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = torch.func.functional_call(model, theta, kwargs={"pixel_values": pixels}).logits
        return value(logits, labels).mean()

    gradient = torch.func.grad(of_all)

    def of_some(theta: Weights, pixels: torch.Tensor, labels: torch.Tensor) -> Weights:
        return {name: part.expand(len(pixels), *part.shape) for name, part in gradient(theta, pixels, labels).items()}

    return of_some


@dataclass(frozen=True)
class UnrepairedJiTOptions(JiTOptions):
    sigma: float = option(
        30.0, "Standard deviation of the noise on preprocessed pixels, which span about -2 to 2.", minimum=1e-3, at="apply"
    )


class UnrepairedJiT(JiT):
    summary = "jit as it is elsewhere: a photo's step is made of all gradients so far, under noise that leaves nothing of a face"
    options = UnrepairedJiTOptions
    presets = None  # they name the repaired sigma

    @staticmethod
    def gradients(value: torch.Tensor, weights: Sequence[nn.Parameter]) -> Sequence[torch.Tensor | None]:
        """Add the gradient of a photo's penalty to those of the photos before it."""
        value.backward()
        return [weight.grad for weight in weights]
