"""PGU, SSD and JiT with the errors of other implementations, to measure the effect of the repairs. Not for use.

    pip install tests/studies/unrepaired      installs the methods unrepaired-pgu, unrepaired-ssd and unrepaired-jit

Each class inherits from the shipped method and overrides only the incorrect lines.
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

    from oneshui_hf.methods import Artefact, TaskKind, Weights
    from oneshui_plugins.common.input_covariance import Covariance, Layer
    from oneshui_plugins.common.parameter_importance import LoadBatch, PerImageGradients, PerImageValue


@dataclass(frozen=True)
class UnrepairedPGUOptions(PGUOptions):
    subtract_support: bool = option(
        True, "Subtract the covariance of the support images, which were not training photos.", at="apply", formerly=("subtract",)
    )


class UnrepairedPGU(PGU):
    summary = "runs pgu with known errors: it forgets two attributes only, patches overlap, energies can be negative"
    options = UnrepairedPGUOptions

    @staticmethod
    def loss(logits: torch.Tensor, labels: torch.Tensor, kind: TaskKind) -> torch.Tensor:
        """Use the labels 0 and 1 of K attributes as class indices: -log p[0] or -log p[1], for each attribute."""
        from torch.nn.functional import logsigmoid

        if kind == "single_label":
            return PGU.loss(logits, labels, kind)
        return -logsigmoid(logits).gather(1, labels.long()).mean(dim=1)  # the correct code uses a boolean mask

    @staticmethod
    def input_covariances(
        model: nn.Module, num_images: int, load: Callable[[torch.Tensor], torch.Tensor], chunk: int, context: Context
    ) -> dict[str, Covariance]:
        """Use patches with stride 1, whatever the stride of the convolution."""
        from oneshui_plugins.common.input_covariance import input_covariances

        return input_covariances(model, num_images, load, chunk, context, extract_rows=stride_one)

    @staticmethod
    def core_space(covariance: torch.Tensor, gamma: float) -> torch.Tensor:
        """Include negative energies, which occur if subtracted rows were not in the covariance."""
        import torch

        energies, vectors = torch.linalg.eigh(covariance.double())
        energies, vectors = energies.flip(-1), vectors.flip(-1)
        cumulative = energies.cumsum(-1)
        is_needed = cumulative - energies < gamma * cumulative[..., -1:]
        k = int(is_needed.sum(-1).max())
        return (vectors * is_needed.unsqueeze(-2))[..., :k]


def stride_one(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    from torch import nn

    from oneshui_plugins.common.input_covariance import input_rows

    if isinstance(layer, nn.Conv2d):
        layer = copy.copy(layer)
        layer.stride = (1, 1)
    return input_rows(layer, x)


@dataclass(frozen=True)
class UnrepairedSSDOptions(SSDOptions):
    chunk: int = option(32, "Training photos per batch, whose mean gradient is squared; the result depends on it.", minimum=1)


class UnrepairedSSD(SSD):
    summary = "runs ssd with a known error: it squares the mean gradient of a batch, so importances depend on the batch size"
    options = UnrepairedSSDOptions

    def apply(
        self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: UnrepairedSSDOptions, context: Context
    ) -> nn.Module:
        """Use all support images as one batch."""
        return super().apply(model, data, artefact, dataclasses.replace(options, chunk=len(data.support)), context)

    def _importances(
        self, model: nn.Module, load: LoadBatch, positions: torch.Tensor, options: UnrepairedSSDOptions, context: Context
    ) -> Weights:
        from oneshui_plugins.common.parameter_importance import parameter_importances

        kind = context.task.kind
        return parameter_importances(
            model,
            load,
            positions,
            lambda logits, labels: self.per_image_value(logits, labels, kind),
            self.power,
            options.chunk,
            context,
            differentiate=batch_gradients,
        )


def batch_gradients(model: nn.Module, value: PerImageValue, chunk: int) -> PerImageGradients:
    """Return the function that gives, instead of each photo's gradient, the gradient of its batch's mean value."""
    import torch

    def mean_value(theta: Weights, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = torch.func.functional_call(model, theta, kwargs={"pixel_values": pixels}).logits
        return value(logits, labels).mean()

    gradient = torch.func.grad(mean_value)

    def differentiate(theta: Weights, pixels: torch.Tensor, labels: torch.Tensor) -> Weights:
        return {name: part.expand(len(pixels), *part.shape) for name, part in gradient(theta, pixels, labels).items()}

    return differentiate


@dataclass(frozen=True)
class UnrepairedJiTOptions(JiTOptions):
    sigma: float = option(
        30.0, "Standard deviation of the noise on preprocessed pixels, which range from about -2 to 2.", minimum=1e-3, at="apply"
    )


class UnrepairedJiT(JiT):
    summary = "runs jit with known errors: steps use all gradients so far, and the noise makes faces unrecognisable"
    options = UnrepairedJiTOptions
    presets = None  # they contain the repaired sigma

    @staticmethod
    def gradients(penalty: torch.Tensor, weights: Sequence[nn.Parameter]) -> Sequence[torch.Tensor | None]:
        """Add the gradient of a photo's penalty to those of the previous photos."""
        penalty.backward()
        return [weight.grad for weight in weights]
