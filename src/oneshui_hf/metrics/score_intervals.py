"""Bootstrap intervals of scores, losses, ToW and gap closure. Every model is scored on the same resamples of the people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ..data.schema import TaskKind
from ..seeding import generator
from ..sets import COMPARED, EVALUATED
from .comparison import Comparison, Predictions, Settings
from .intervals import bootstrap, interval_ends, percentile_interval
from .paired_bootstrap import Resamples, reflect_resamples, tow_interval


def score_intervals(compared: Comparison, kind: TaskKind, settings: Settings, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `intervals` entry of `metrics.json`.

    Args:
        compared: Predictions of the models.
        kind: What the models predict.
        settings: Number of resamples, level and seed.
        metrics: The metrics that the intervals belong to.
    """
    score_name = metrics["score"]
    intervals: dict[str, Any] = {"level": settings.level, "resamples": settings.resamples, "tow": None, "gap_closure": None}
    differences: list[tuple[float, torch.Tensor, int]] = []  # from the oracle, set by set
    for name in EVALUATED:
        predictions, people = compared.model[name], metrics[name]["people"]
        resamples = Resamples.draw(predictions.identities, settings.resamples, generator(settings.seed, "resamples", name))
        score, resampled = metrics[name][score_name], _resampled_scores(resamples, predictions, kind)
        rng = generator(settings.seed, "losses", name)
        loss = bootstrap(predictions.losses, predictions.identities, settings.resamples, rng, settings.level)
        interval = percentile_interval(score, resampled, people, settings.level)
        intervals[name] = {score_name: interval_ends(interval), "loss": interval_ends(loss)}
        if compared.oracle and compared.oracle is not compared.model and name in COMPARED:
            oracle = _resampled_scores(resamples, compared.oracle[name], kind)
            differences.append((score - compared.oracle[name].score(kind), resampled - oracle, people))
            if compared.original and compared.original is not compared.model and metrics["gap_closure"] is not None and name == "forget":
                original = _resampled_scores(resamples, compared.original[name], kind)
                closure = _gap_closure_interval(metrics["gap_closure"], original, resampled, oracle, people, settings.level)
                intervals["gap_closure"] = closure
    if differences:
        intervals["tow"] = interval_ends(tow_interval(metrics["tow"], differences, settings.level))
    return intervals


def gap_closure_interval(
    value: float, original: Predictions, unlearned: Predictions, oracle: Predictions, kind: TaskKind, settings: Settings
) -> list[float] | None:
    """Return the interval of a gap closure on the forget set; None where the interval of the gap, its denominator, contains 0.

    Args:
        value: The gap closure.
        original: Predictions of the original for the photos of the forget set.
        unlearned: Those of the unlearned model.
        oracle: Those of the oracle.
        kind: What the models predict.
        settings: Number of resamples, level and seed.
    """
    resamples = Resamples.draw(unlearned.identities, settings.resamples, generator(settings.seed, "resamples", "forget"))
    before, after, ideal = (_resampled_scores(resamples, of, kind) for of in (original, unlearned, oracle))
    return _gap_closure_interval(value, before, after, ideal, resamples.people, settings.level)


def _resampled_scores(resamples: Resamples, predictions: Predictions, kind: TaskKind) -> torch.Tensor:
    """Return the score of each resample, corrected for the bias of resampling, (R,)."""
    if kind == "multi_label":
        scores = resamples.average_precision(predictions.logits, predictions.labels)
    else:
        scores = 100 * resamples.mean((predictions.logits.argmax(dim=1) == predictions.labels).double())
    return reflect_resamples(predictions.score(kind), scores).clamp(0, 100)


def _gap_closure_interval(
    value: float, original: torch.Tensor, unlearned: torch.Tensor, oracle: torch.Tensor, people: int, level: float
) -> list[float] | None:
    """Return the interval of a gap closure; None where the interval of the gap, its denominator, contains 0."""
    gap = percentile_interval(math.nan if math.isnan(value) else 0.0, original - oracle, people, level)
    if not (gap.low > 0 or gap.high < 0):
        return None
    return interval_ends(percentile_interval(value, (original - unlearned) / (original - oracle), people, level))
