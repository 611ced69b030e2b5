"""SSD, selective synaptic dampening: shrink the parameters that matter for the support photos far more than for the training set.

Foster, Schoepf, Brintrup: "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening", AAAI 2024
(arXiv 2308.07707). The importance of a parameter is the mean over photos of the squared gradient of each photo's own loss, on both sides;
`importance` tells why, and has the mathematics. The preset `paper` has the values of De Min et al. 2025, which were tuned with squared
batch-mean gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from oneshui_hf.methods import Context, Cost, DataAccess, Method, Needs, generator, option

if TYPE_CHECKING:
    import torch
    from torch import nn

    from oneshui_hf.methods import Artefact, TaskKind

    from .common.parameter_importance import Batch, Weights


@dataclass(frozen=True)
class SSDOptions:
    """Options of SSD."""

    dampening: float = option(
        2.0,
        "Factor (lambda) of the ratio of importances, training set to support, that a selected parameter shrinks to.",
        minimum=0,
        at="apply",
        search=(0.01, 10.0),
    )
    selection: float = option(
        50.0,
        "How many times as important as for the training set (alpha) a selected parameter is for the support.",
        minimum=0,
        at="apply",
        search=(0.5, 500.0),
    )
    photos: int | None = option(None, "Most training photos to measure on, drawn uniformly without replacement; all by default.", minimum=1)
    chunk: int = option(
        4, "Photos differentiated at once; memory grows by the model's size with each, the result stays.", minimum=1, at="apply"
    )


class SSD(Method[SSDOptions]):
    """Dampening by the diagonal of the empirical Fisher information."""

    summary = "shrinks the parameters that matter for the photos handed in far more than for the training set"
    paper = "Foster et al., Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening, AAAI 2024"
    needs = Needs(prepare=frozenset({"train"}), apply=frozenset({"support"}))
    options = SSDOptions
    prepares = "required"
    presets: ClassVar[tuple[str, str] | None] = ("oneshui_plugins.presets", "ssd.json")

    power: ClassVar[int] = 2

    @staticmethod
    def value(logits: torch.Tensor, labels: torch.Tensor, kind: TaskKind) -> torch.Tensor:
        """Return what is differentiated for each photo, (n,): its loss."""
        from oneshui_hf.methods import losses

        return losses(logits, labels, kind)

    def prepare(self, model: nn.Module, data: DataAccess, options: SSDOptions, context: Context) -> Artefact:
        """Measure I_train."""
        from oneshui_hf.methods import Artefact, sample

        train = data.train
        positions = sample(len(train), options.photos or len(train), generator(context.seed, "importances"))
        tensors = self._importances(model, lambda some: train.batch(some, context.device), positions, options, context)
        return Artefact(tensors=tensors, report={"photos": len(positions)})

    def cost(self, model: nn.Module, data: DataAccess, options: SSDOptions, context: Context) -> Cost:
        """Return a gradient for each photo measured on, and one tensor a parameter."""
        photos = min(options.photos or len(data.train), len(data.train))
        return Cost(backward=photos, bytes=sum(part.numel() * part.element_size() for part in model.parameters()))

    def apply(self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: SSDOptions, context: Context) -> nn.Module:
        """Measure I_support and return the dampened model."""
        import torch

        from .common.parameter_importance import dampened

        assert artefact is not None  # the core refuses to apply what was not prepared
        pixels, labels = data.support.pixels, data.support.labels
        support = self._importances(model, lambda some: (pixels[some], labels[some]), torch.arange(len(pixels)), options, context)
        new, count = dampened(model, artefact.tensors, support, options.selection, options.dampening)
        if count == 0:
            context.reporter.warn("No parameter matters enough more for these photos, so the model stays as it was; lower --selection.")
        context.report |= {"parameters": sum(part.numel() for part in support.values()), "parameters_dampened": count}
        return new

    def _importances(self, model: nn.Module, batch: Batch, positions: torch.Tensor, options: SSDOptions, context: Context) -> Weights:
        from .common.parameter_importance import importances

        kind = context.task.kind
        return importances(
            model, batch, positions, lambda logits, labels: self.value(logits, labels, kind), self.power, options.chunk, context
        )
