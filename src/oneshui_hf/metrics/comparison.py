"""Inputs of the metrics: predictions of a model on each set, the models that it is compared with, and the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..data.schema import TaskKind
from ..sets import EVALUATED
from .functional import score_of


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of a model on the photos of a set.

    Attributes:
        logits: float32 (n, K).
        labels: (n, K) of 0/1, or classes (n,).
        losses: (n,).
        identities: Number of the person on each photo, (n,).
        features: Inputs of the classification head (n, d), where known.
        views: Logits (n, K) of further versions of the photos, mirrored and shifted.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    losses: torch.Tensor
    identities: torch.Tensor
    features: torch.Tensor | None = None
    views: tuple[torch.Tensor, ...] = ()

    @property
    def versions(self) -> torch.Tensor:
        """Logits of all versions of the photos, (q, n, K)."""
        return torch.stack([self.logits, *self.views])

    def score(self, kind: TaskKind) -> float:
        """Return mAP or accuracy, in percent."""
        return score_of(self.logits, self.labels, kind)


PredictionsBySet = Mapping[str, Predictions]


def scores_by_set(predictions: PredictionsBySet, kind: TaskKind) -> dict[str, float]:
    """Return mAP or accuracy of each evaluated set, in percent."""
    return {name: predictions[name].score(kind) for name in EVALUATED}


CANDIDATES = ("retain", "forget", "test", "support")  # sets whose people an attacker with two models considers


@dataclass(frozen=True, eq=False)
class WeightEnergies:
    """The energies of photos in the row space of a weight difference; see `models.layer_inputs.layer_energies`.

    Attributes:
        layers: Of each linear layer that differs, float64 (n,), for photos of all `CANDIDATES`.
        sets: The set of each photo, its index in `CANDIDATES`, (n,).
        identities: Number of the person on each photo, (n,).
        numbers_left_out: How many numbers changed in other tensors than the weights of these layers.
    """

    layers: Mapping[str, torch.Tensor]
    sets: torch.Tensor
    identities: torch.Tensor
    numbers_left_out: int


@dataclass(frozen=True)
class NotRun:
    """Why something could not be measured, for the middle of a sentence."""

    reason: str


@dataclass(frozen=True, eq=False)
class Comparison:
    """A model and the models that it is compared with.

    Attributes:
        model: The evaluated model.
        original: The model trained on all identities.
        oracle: The model trained without the forget identities.
        oracles: Oracles of other seeds.
        references: Reference models for RMIA: the same method applied to each of `oracles`.
        weight_energies: Energies in the difference of the model's weights to the original's; None where there is no difference.
        oracle_weight_energies: The same for the oracle.
    """

    model: PredictionsBySet
    original: PredictionsBySet | None = None
    oracle: PredictionsBySet | None = None
    oracles: Sequence[PredictionsBySet] = ()
    references: Sequence[PredictionsBySet] = ()
    weight_energies: WeightEnergies | NotRun | None = None
    oracle_weight_energies: WeightEnergies | NotRun | None = None


@dataclass(frozen=True)
class Settings:
    """Settings of the metrics in addition to the predictions; see `EvaluateOptions`."""

    resamples: int = 1000
    level: float = 0.95
    rmia_a: float = 0.3
    rmia_gamma: float = 2.0
    seed: int = 0
    labels: Sequence[str] = ()  # names of attributes or classes; empty where they are unknown
