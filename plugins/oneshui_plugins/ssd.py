"""SSD, selective synaptic dampening: shrink the parameters that are far more important for the support images than for the training set.

Foster, Schoepf, Brintrup: "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening", AAAI 2024
(arXiv 2308.07707). The importance of a parameter is the mean over photos of the squared gradient of each photo's loss, on both sides;
`common.parameter_importance` has the formula and the reason. The preset `paper` has the values of De Min et al. 2025, which were tuned
with squared batch-mean gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from oneshui_hf.methods import Context, Cost, DataAccess, Method, Needs, generator, option

if TYPE_CHECKING:
    import torch
    from torch import nn

    from oneshui_hf.methods import Artefact, TaskKind, Weights

    from .common.parameter_importance import LoadBatch


@dataclass(frozen=True)
class SSDOptions:
    """Options of SSD."""

    dampening: float = option(
        2.0,
        "Factor lambda: a selected parameter is scaled by lambda * I_train / I_support, at most 1.",
        minimum=0,
        at="apply",
        search=(0.01, 10.0),
    )
    selection: float = option(
        50.0,
        "Threshold alpha: a parameter is selected if its importance I_support > alpha * I_train.",
        minimum=0,
        at="apply",
        search=(0.5, 500.0),
    )
    photos: int | None = option(
        None, "Maximum number of training photos for I_train, sampled without replacement; all by default.", minimum=1
    )
    chunk: int = option(
        4, "Photos differentiated at once; each needs memory of the model's size; no effect on the result.", minimum=1, at="apply"
    )


class SSD(Method[SSDOptions]):
    """Dampening by the diagonal of the empirical Fisher information."""

    summary = "shrinks the parameters that are far more important for the support images than for the training set"
    paper = "Foster et al., Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening, AAAI 2024"
    needs = Needs(prepare=frozenset({"train"}), apply=frozenset({"support"}))
    options = SSDOptions
    prepares = "required"
    presets: ClassVar[tuple[str, str] | None] = ("oneshui_plugins.presets", "ssd.json")

    power: ClassVar[int] = 2

    @staticmethod
    def per_image_value(logits: torch.Tensor, labels: torch.Tensor, kind: TaskKind) -> torch.Tensor:
        """Return the quantity that is differentiated for each photo, (n,): its loss."""
        from oneshui_hf.methods import losses

        return losses(logits, labels, kind)

    def prepare(self, model: nn.Module, data: DataAccess, options: SSDOptions, context: Context) -> Artefact:
        """Compute I_train."""
        from oneshui_hf.methods import Artefact, sample

        train = data.train
        positions = sample(len(train), options.photos or len(train), generator(context.seed, "importances"))
        tensors = self._importances(model, lambda rows: train.batch(rows, context.device), positions, options, context)
        return Artefact(tensors=tensors, report={"photos": len(positions)})

    def cost(self, model: nn.Module, data: DataAccess, options: SSDOptions, context: Context) -> Cost:
        """Return one gradient per photo used, and the size of one tensor per parameter."""
        photos = min(options.photos or len(data.train), len(data.train))
        return Cost(backward=photos, bytes=sum(part.numel() * part.element_size() for part in model.parameters()))

    def apply(self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: SSDOptions, context: Context) -> nn.Module:
        """Compute I_support and return the dampened model."""
        import torch

        from .common.parameter_importance import dampen

        assert artefact is not None  # the core requires preparation
        pixels, labels = data.support.pixels, data.support.labels
        support = self._importances(model, lambda rows: (pixels[rows], labels[rows]), torch.arange(len(pixels)), options, context)
        new, count = dampen(model, artefact.tensors, support, options.selection, options.dampening)
        if count == 0:
            context.reporter.warn("No parameter is important enough for these photos, so the model is unchanged; lower --selection.")
        context.report |= {"parameters": sum(part.numel() for part in support.values()), "parameters_dampened": count}
        return new

    def _importances(self, model: nn.Module, load: LoadBatch, positions: torch.Tensor, options: SSDOptions, context: Context) -> Weights:
        from .common.parameter_importance import parameter_importances

        kind = context.task.kind
        return parameter_importances(
            model, load, positions, lambda logits, labels: self.per_image_value(logits, labels, kind), self.power, options.chunk, context
        )
