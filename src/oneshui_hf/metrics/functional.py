"""Metrics as functions on tensors. Scores are in percent, higher is better unless said otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..data.schema import Task, TaskKind


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


def balanced_accuracy(logits: torch.Tensor, labels: torch.Tensor, kind: TaskKind) -> tuple[float, int]:
    """Return the balanced accuracy in percent, chance being 50 per attribute or 100 / K, and how many labels were left out.

    Multi-label: per attribute the mean of the share of right ones and the share of right zeros, then the mean over the attributes that
    have both values here. Single-label: the mean, over the classes that have a photo here, of the share of its photos that are right.
    NaN where no label is left, or where any logit is NaN.

    Args:
        logits: (n, K); an attribute is predicted where its logit is above 0.
        labels: (n, K) of 0/1, or classes (n,).
        kind: Which of the two.
    """
    if kind == "multi_label":
        truth, right = labels != 0, ((logits > 0) == (labels != 0)).double()
        sizes = torch.stack([truth.sum(0), (~truth).sum(0)])  # (2, K)
        hits = torch.stack([(right * truth).sum(0), (right * ~truth).sum(0)])
    else:
        guessed = logits.argmax(dim=1) if len(labels) else labels
        sizes = torch.bincount(labels, minlength=logits.shape[1]).unsqueeze(0)  # (1, K)
        hits = torch.bincount(labels[guessed == labels], minlength=logits.shape[1]).double().unsqueeze(0)
    kept = (sizes > 0).all(dim=0)
    known = bool(kept.any()) and not logits.isnan().any()
    value = 100 * (hits / sizes).mean(dim=0)[kept].mean().item() if known else math.nan
    return value, int((~kept).sum())


def jensen_shannon(logits: torch.Tensor, others: torch.Tensor, kind: TaskKind) -> float:
    """Return how far two models' predictions on the same photos are apart: the mean Jensen-Shannon divergence, in nats.

    0 where they say the same, log 2 = 0.69 where they contradict each other with certainty; lower is nearer. Multi-label: the divergence of
    two Bernoulli distributions per attribute, averaged over attributes and photos. NaN without photos or where any logit is NaN.

    Args:
        logits: (n, K) of one model.
        others: (n, K) of the other.
        kind: Whether the logits are of a sigmoid (multi-label) or of a softmax.
    """
    first, second = (_log_distribution(x.double(), kind) for x in (logits, others))
    middle = torch.logaddexp(first, second) - math.log(2)
    divergences = (first.exp() * (first - middle) + second.exp() * (second - middle)).sum(-1) / 2
    return divergences.mean().clamp(min=0).item()  # the sum of rounding errors may be -1e-17


def _log_distribution(logits: torch.Tensor, kind: TaskKind) -> torch.Tensor:
    """Return log-probabilities, the last dimension summing to 1: (n, K, 2) of yes and no, or (n, K)."""
    if kind == "multi_label":
        return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=-1)
    return logits.log_softmax(dim=-1)


@dataclass(frozen=True, eq=False)
class IdentityGap:
    """How an unlearned model's loss differs from the oracle's, person by person.

    Attributes:
        people: The identities, sorted, (P,).
        gaps: Mean loss of each person less the oracle's, float64 (P,): above 0 is forgotten too much, below 0 too little.
        mean: Mean over people.
        largest: The largest absolute value: one person forgotten badly is not made good by the others.
    """

    people: torch.Tensor
    gaps: torch.Tensor
    mean: float
    largest: float


def identity_losses(losses: torch.Tensor, identities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the identities, sorted (P,), and the mean loss over each one's photos, float64 (P,).

    Args:
        losses: Loss of each photo, (n,).
        identities: Person of each photo, integers (n,).
    """
    people, owner = identities.unique(return_inverse=True)
    sums = torch.zeros(len(people), dtype=torch.float64).index_add_(0, owner, losses.double())
    return people, sums / torch.bincount(owner, minlength=len(people))


def identity_loss_gap(losses: torch.Tensor, oracle: torch.Tensor, identities: torch.Tensor) -> IdentityGap:
    """Return each person's mean loss less the oracle's on the same photos; 0 is ideal, NaN without photos.

    Args:
        losses: Loss of each photo under the unlearned model, (n,).
        oracle: The same under the oracle.
        identities: Person of each photo, integers (n,).
    """
    people, gaps = identity_losses(losses.double() - oracle.double(), identities)
    return IdentityGap(people, gaps, gaps.mean().item(), gaps.abs().max().item() if len(gaps) else math.nan)


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


def score(logits: torch.Tensor, labels: torch.Tensor, task: Task) -> float:
    """Return the task's score in percent: mAP or accuracy."""
    return score_of(logits, labels, task.kind)


def score_of(logits: torch.Tensor, labels: torch.Tensor, kind: TaskKind) -> float:
    """Return mAP of attributes, or the accuracy of classes, in percent."""
    return mean_average_precision(logits, labels)[0] if kind == "multi_label" else accuracy(logits, labels)
