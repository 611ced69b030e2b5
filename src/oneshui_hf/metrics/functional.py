"""Metrics as functions on tensors. Scores are in percent, and higher is better unless stated otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..data.schema import Task, TaskKind
from .ordering import descending_order, runs_of_equal


def average_precision(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the average precision of each label, 0..1, float64 (K,).

    The step-wise area under the precision-recall curve; photos with equal scores count as one threshold, as in scikit-learn. NaN for a
    label without a positive, and for a label with a NaN score, since its order is unknown. 1 for a label that is positive on every photo,
    with any scores.

    Args:
        scores: (n, K), higher means more likely.
        labels: (n, K) of 0/1.
    """
    rows = zip(scores.T.contiguous(), labels.T.contiguous(), strict=True)  # one by one: the numbers of a label fit in a core's cache
    return torch.stack([_label_average_precision(*row) for row in rows])


def _label_average_precision(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the average precision of one label, whose scores and labels are (n,)."""
    count, device = len(scores), scores.device
    if count == 0 or scores.isnan().any():
        return torch.tensor(math.nan, dtype=torch.float64, device=device)
    order = descending_order(scores)
    hits = labels[order].double()
    precision = hits.cumsum(0) / torch.arange(1, count + 1, device=device, dtype=torch.float64)
    # Equal scores share the precision at the end of their run.
    is_last, run = runs_of_equal(scores[order])
    return (hits * precision[is_last][run]).sum() / hits.sum()


def varying_labels(labels: torch.Tensor) -> torch.Tensor:
    """Return whether each label has a positive and a negative photo, bool (K,).

    Only these labels have an order of photos to score: without a positive, average precision is undefined; without a negative, every
    model has 100 %.

    Args:
        labels: (n, K) of 0/1.
    """
    is_positive = labels != 0
    return is_positive.any(dim=0) & (~is_positive).any(dim=0)


def mean_average_precision(scores: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
    """Return the mean over the labels that vary, in percent, and the number of labels left out, which are constant on these photos.

    NaN where every label is constant, or where any score is NaN: a NaN output means a broken model, which no number may hide.

    Args:
        scores: (n, K), higher means more likely.
        labels: (n, K) of 0/1.
    """
    is_kept = varying_labels(labels)
    kept = average_precision(scores, labels)[is_kept]
    is_known = len(kept) > 0 and not scores.isnan().any()
    return (100 * kept.mean().item() if is_known else math.nan), len(is_kept) - len(kept)


def accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of photos whose highest-scored class is the label, in percent; NaN without photos or where any score is NaN."""
    if len(labels) == 0 or scores.isnan().any():
        return math.nan
    return 100 * (scores.argmax(dim=1) == labels).double().mean().item()


def balanced_accuracy(logits: torch.Tensor, labels: torch.Tensor, kind: TaskKind) -> tuple[float, int]:
    """Return the balanced accuracy in percent, chance being 50 per attribute or 100 / K, and the number of labels left out.

    Multi-label: the mean of true positive rate and true negative rate per attribute, then the mean over the attributes that have both
    values in these labels. Single-label: the mean of the recall over the classes that have a photo. NaN where no label is left, or where
    any logit is NaN.

    Args:
        logits: (n, K); an attribute is predicted where its logit is above 0.
        labels: (n, K) of 0/1, or classes (n,).
        kind: Which of the two.
    """
    if kind == "multi_label":
        targets, is_correct = labels != 0, ((logits > 0) == (labels != 0)).double()
        sizes = torch.stack([targets.sum(0), (~targets).sum(0)])  # (2, K)
        hits = torch.stack([(is_correct * targets).sum(0), (is_correct * ~targets).sum(0)])
    else:
        predicted = logits.argmax(dim=1) if len(labels) else labels
        sizes = torch.bincount(labels, minlength=logits.shape[1]).unsqueeze(0)  # (1, K)
        hits = torch.bincount(labels[predicted == labels], minlength=logits.shape[1]).double().unsqueeze(0)
    is_kept = (sizes > 0).all(dim=0)
    is_known = bool(is_kept.any()) and not logits.isnan().any()
    value = 100 * (hits / sizes).mean(dim=0)[is_kept].mean().item() if is_known else math.nan
    return value, int((~is_kept).sum())


def jensen_shannon(logits: torch.Tensor, others: torch.Tensor, kind: TaskKind) -> float:
    """Return the mean Jensen-Shannon divergence between two models' predictions on the same photos, in nats.

    0 for equal predictions, log 2 = 0.69 for opposite predictions with certainty; lower is closer. Multi-label: the divergence of two
    Bernoulli distributions per attribute, averaged over attributes and photos. NaN without photos or where any logit is NaN.

    Args:
        logits: (n, K) of one model.
        others: (n, K) of the other.
        kind: Whether the logits are of a sigmoid (multi-label) or of a softmax.
    """
    first, second = (_log_distribution(x.double(), kind) for x in (logits, others))
    mixture = torch.logaddexp(first, second) - math.log(2)
    divergences = (first.exp() * (first - mixture) + second.exp() * (second - mixture)).sum(-1) / 2
    return divergences.mean().clamp(min=0).item()  # the sum of rounding errors may be -1e-17


def _log_distribution(logits: torch.Tensor, kind: TaskKind) -> torch.Tensor:
    """Return log-probabilities: (n, K, 2) of attribute present and absent, or (n, K) of the classes."""
    if kind == "multi_label":
        return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=-1)
    return logits.log_softmax(dim=-1)


@dataclass(frozen=True, eq=False)
class IdentityGap:
    """Difference between an unlearned model's loss and the oracle's, per person.

    Attributes:
        people: The identities, sorted, (P,).
        gaps: Mean loss of each person minus the oracle's, float64 (P,): above 0 is forgotten too much, below 0 too little.
        mean: Mean over people.
        largest: The largest absolute value, so that other people do not average out one who is forgotten badly.
    """

    people: torch.Tensor
    gaps: torch.Tensor
    mean: float
    largest: float


def identity_losses(losses: torch.Tensor, identities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the identities, sorted (P,), and the mean loss over the photos of each, float64 (P,).

    Args:
        losses: Loss of each photo, (n,).
        identities: Person on each photo, integers (n,).
    """
    people, person_index = identities.unique(return_inverse=True)
    sums = torch.zeros(len(people), dtype=torch.float64).index_add_(0, person_index, losses.double())
    return people, sums / torch.bincount(person_index, minlength=len(people))


def identity_loss_gap(losses: torch.Tensor, oracle: torch.Tensor, identities: torch.Tensor) -> IdentityGap:
    """Return each person's mean loss minus the oracle's on the same photos; 0 is ideal, NaN without photos.

    Args:
        losses: Loss of each photo under the unlearned model, (n,).
        oracle: The same under the oracle.
        identities: Person on each photo, integers (n,).
    """
    people, gaps = identity_losses(losses.double() - oracle.double(), identities)
    return IdentityGap(people, gaps, gaps.mean().item(), gaps.abs().max().item() if len(gaps) else math.nan)


def tug_of_war(scores: Mapping[str, float], oracle: Mapping[str, float]) -> float:
    """Return ToW, in percent: 100 times the product, over sets, of (1 - |score - oracle's score| / 100).

    100 is the oracle's value. Doing nothing can already score high, so compare with the original model (Zhao et al. 2024; De Min et al.
    2025).

    Args:
        scores: Per set (retain, forget, test) the unlearned model's score in percent.
        oracle: The oracle's scores.
    """
    return 100 * math.prod(1 - abs(scores[name] - oracle[name]) / 100 for name in scores)


def gap_closure(original: float, unlearned: float, oracle: float) -> float:
    """Return the share of the forget set's gap between original and oracle that is closed: 0 is doing nothing, 1 is the oracle.

    NaN where original and oracle have equal scores, so that there is no gap to close.
    """
    return (original - unlearned) / (original - oracle) if original != oracle else math.nan


def score(logits: torch.Tensor, labels: torch.Tensor, task: Task) -> float:
    """Return the task's score in percent: mAP or accuracy. NaN where `is_scorable` is false."""
    return score_of(logits, labels, task.kind)


def is_scorable(labels: torch.Tensor, task: Task) -> bool:
    """Return whether the score of photos with these labels is defined: at least one photo, and for mAP at least one label that varies."""
    return bool(varying_labels(labels).any()) if task.kind == "multi_label" else len(labels) > 0


def score_of(logits: torch.Tensor, labels: torch.Tensor, kind: TaskKind) -> float:
    """Return mAP of attributes, or the accuracy of classes, in percent."""
    return mean_average_precision(logits, labels)[0] if kind == "multi_label" else accuracy(logits, labels)
