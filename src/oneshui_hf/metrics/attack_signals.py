"""Inputs of the membership inference attacks, computed from logits: probability of the true label, its logit, loss and confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..data.schema import TaskKind


@dataclass(frozen=True, eq=False)
class Signals:
    """Log-probabilities of the true labels of some photos, as `label_log_probabilities` returns them.

    Attributes:
        target: Of the attacked model, (n, K), or (q, n, K) for q versions of each photo (the photo itself, its mirror image, crops).
        references: Of one to eight models that were never trained on the forget set, (r, n, K) or (r, q, n, K).
    """

    target: torch.Tensor
    references: torch.Tensor


def label_log_probabilities(logits: torch.Tensor, labels: torch.Tensor, kind: TaskKind) -> torch.Tensor:
    """Return the log-probability of the true value, float64: (..., n, K) per attribute, or (..., n, 1) of the true class.

    Args:
        logits: (..., n, K), with any leading dimensions: models, versions of a photo.
        labels: (n, K) of 0/1, or classes (n,).
        kind: Which of the two.
    """
    if kind == "multi_label":
        return F.logsigmoid(logits.double() * (2 * labels.double() - 1))
    return _select_class(logits.double().log_softmax(dim=-1), labels)


def scaled_logits(logits: torch.Tensor, labels: torch.Tensor, kind: TaskKind) -> torch.Tensor:
    """Return log(p / (1 - p)) of the probability p of the true value, float64 (..., n, K) or (..., n, 1).

    It is nearly Gaussian over models. It is computed from logits, since probabilities would round to 1 (Carlini et al. 2022, section VI-A).

    Args:
        logits: (..., n, K), with any leading dimensions.
        labels: (n, K) of 0/1, or classes (n,).
        kind: Which of the two.
    """
    logits = logits.double()
    if kind == "multi_label":
        return logits * (2 * labels.double() - 1)
    others = logits.masked_fill(F.one_hot(labels, logits.shape[-1]).bool(), -math.inf)
    return _select_class(logits, labels) - others.logsumexp(dim=-1, keepdim=True)


def _select_class(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the value (..., n, 1) of the true class from (..., n, K)."""
    return values.gather(-1, labels.unsqueeze(-1).expand(*values.shape[:-1], 1))


def confidence_features(logits: torch.Tensor, losses: torch.Tensor, kind: TaskKind) -> torch.Tensor:
    """Return loss and confidence of each photo, float64 (n, 2), the features of the logistic attack.

    Confidence needs no label: the highest class logit minus the second highest, or the mean absolute logit of the attributes.

    Args:
        logits: (n, K).
        losses: (n,).
        kind: Whether the logits are of attributes or of classes.
    """
    if kind == "multi_label":
        confidence = logits.double().abs().mean(dim=1)
    else:
        first, second = logits.double().topk(2, dim=1).values.unbind(dim=1)
        confidence = first - second
    return torch.stack([losses.double(), confidence], dim=1)
