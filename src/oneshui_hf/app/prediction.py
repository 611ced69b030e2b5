"""What a model predicts for one photo, ready to be shown: bars before and after, with the range of unseen identities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..data.schema import TaskKind
from ..models.outputs import predicted_labels, probabilities
from ..runs import PREDICTIONS, SPLIT, Run
from ..stages.command_options import EvaluateOptions
from ..stages.evaluation.predictions import load_sealed, predictions_key
from ..stages.unseen_range import QUANTILES

SHOWN = 12  # bars that are shown at once, at most


@dataclass(frozen=True)
class LabelBar:
    """One label of one photo. All values are probabilities.

    Attributes:
        label: Its name.
        before: Of the model.
        after: Of the model after unlearning; None where nothing was unlearned.
        low: Lower end of the range of unseen identities, the 5 % quantile over photos of val; None where it is unknown.
        high: Upper end, the 95 % quantile.
    """

    label: str
    before: float
    after: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def change(self) -> float:
        """After minus before; 0 where nothing was unlearned."""
        return 0.0 if self.after is None else self.after - self.before


def label_bars(
    names: Sequence[str], before: torch.Tensor, after: torch.Tensor | None = None, ranges: torch.Tensor | None = None
) -> list[LabelBar]:
    """Return the bars of a photo: those that changed most first; without a second model the most probable first.

    Args:
        names: Of the K labels.
        before: Probabilities (K,).
        after: Probabilities of the model after unlearning (K,).
        ranges: Lower and upper ends (2, K).
    """
    bars = [
        LabelBar(
            name,
            before[number].item(),
            None if after is None else after[number].item(),
            None if ranges is None else ranges[0, number].item(),
            None if ranges is None else ranges[1, number].item(),
        )
        for number, name in enumerate(names)
    ]
    return sorted(bars, key=lambda bar: -bar.before if after is None else -abs(bar.change))


def unseen_ranges(run: Run) -> torch.Tensor | None:
    """Return the range of each label's probability over photos of unseen identities, (2, K): its 5 % and 95 % quantiles on val.

    They are read from the stored predictions of an evaluation. None if there are none, or if they belong to other weights.
    """
    if not (run.path / SPLIT).exists():
        return None
    found = load_sealed(run.path / PREDICTIONS, "val", 0, predictions_key(run, EvaluateOptions().batch_size))
    if found is None or not len(found["logits"]):
        return None
    shares = probabilities(found["logits"], run.task)
    return shares.double().quantile(torch.tensor(QUANTILES).double(), dim=0).float()


@dataclass(frozen=True)
class PhotoCosts:
    """What forgetting changes for photos of other people.

    Attributes:
        photos: How many there are.
        changed_labels: Share of their predicted labels that changed.
        changed_photos: Share of the photos of which a predicted label changed.
        probability_change: Mean size of the change of a probability.
        largest_change: Largest change of a probability.
    """

    photos: int
    changed_labels: float
    changed_photos: float
    probability_change: float
    largest_change: float


def photo_costs(before: torch.Tensor, after: torch.Tensor, kind: TaskKind) -> PhotoCosts:
    """Return what forgetting changes for photos of other people.

    Args:
        before: Logits of the model (n, K).
        after: Those of the model after unlearning (n, K).
        kind: Of the task.
    """
    changed = (predicted_labels(before, kind) != predicted_labels(after, kind)).reshape(len(before), -1)
    change = (probabilities(after, kind) - probabilities(before, kind)).abs()
    return PhotoCosts(
        len(before), changed.float().mean().item(), changed.any(dim=1).float().mean().item(), change.mean().item(), change.max().item()
    )
