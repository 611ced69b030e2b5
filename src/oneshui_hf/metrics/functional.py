"""Metrics as functions on tensors. Scores are in percent, higher is better unless said otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch


def average_precision(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the average precision of each label, 0..1, float64 (K,).

    The step-wise area under the precision-recall curve; photos with equal scores count as one threshold, as in scikit-learn. A label
    without a positive has no average precision and gives NaN; so does one with a score that is NaN, since its order is unknown.

    Args:
        scores: (n, K), higher means more likely.
        labels: (n, K) of 0/1.
    """
    count, device = scores.shape[0], scores.device
    if count == 0:
        return torch.full((scores.shape[1],), math.nan, dtype=torch.float64, device=device)
    ordered, order = scores.sort(dim=0, descending=True, stable=True)
    hits = labels.double().gather(0, order)
    rank = torch.arange(1, count + 1, device=device, dtype=torch.float64).unsqueeze(1)
    precision = hits.cumsum(0) / rank
    # Equal scores share the precision at the end of their run: the nearest run end at or below each row.
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[:-1] != ordered[1:]
    rows = torch.arange(count, device=device).unsqueeze(1).expand_as(last)
    run_end = torch.where(last, rows, count).flip(0).cummin(0).values.flip(0)
    areas = (hits * precision.gather(0, run_end)).sum(0) / hits.sum(0)
    return areas.masked_fill(scores.isnan().any(dim=0), math.nan)


def mean_average_precision(scores: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
    """Return the mean over the labels that have a positive, in percent, and how many labels were left out for having none.

    NaN where no label has a positive, or where any score is NaN: a model that says so has broken down, and no number may hide it.
    """
    has_positive = (labels != 0).any(dim=0)
    kept = average_precision(scores, labels)[has_positive]
    known = len(kept) > 0 and not scores.isnan().any()
    return (100 * kept.mean().item() if known else math.nan), len(has_positive) - len(kept)


def accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of photos whose highest-scored class is the label, in percent; NaN without photos or where any score is NaN."""
    if len(labels) == 0 or scores.isnan().any():
        return math.nan
    return 100 * (scores.argmax(dim=1) == labels).double().mean().item()


def tug_of_war(scores: Mapping[str, float], oracle: Mapping[str, float]) -> float:
    """Return ToW, in percent: 100 times the product, over sets, of (1 - |score - oracle's score| / 100).

    100 is the oracle's own value. Doing nothing can already score high, so read it beside the row of the original
    (Zhao et al. 2024; De Min et al. 2025).

    Args:
        scores: Per set (retain, forget, test) the unlearned model's score in percent.
        oracle: The same of the oracle.
    """
    return 100 * math.prod(1 - abs(scores[name] - oracle[name]) / 100 for name in scores)


def gap_closure(original: float, unlearned: float, oracle: float) -> float:
    """Return how much of the forget set's gap between original and oracle is closed: 0 is doing nothing, 1 is the oracle.

    NaN where original and oracle do not differ, since there is no gap to close.
    """
    return (original - unlearned) / (original - oracle) if original != oracle else math.nan
