"""What membership attacks look at, made from logits: the probability of the true label, its logit, loss and confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..data.schema import TaskKind


@dataclass(frozen=True, eq=False)
class Signals:
    """What models say about some photos: the log of the probability of each true label, as `label_log_probabilities` gives it.

    Attributes:
        target: The attacked model, (n, K), or (q, n, K) for q versions of each photo (the photo itself and its mirror image, crops).
        references: One to eight models that never saw the forget set, (r, n, K) or (r, q, n, K).
    """

    target: torch.Tensor
    references: torch.Tensor


def label_log_probabilities(logits: torch.Tensor, labels: torch.Tensor, kind: TaskKind) -> torch.Tensor:
    """Return the log of the probability of the true value, float64 (..., n, K) per attribute, or (..., n, 1) of the true class.

    Args:
        logits: (..., n, K), with any dimensions in front: models, versions of a photo.
        labels: (n, K) of 0/1, or classes (n,).
        kind: Which of the two.
    """
    if kind == "multi_label":
        return F.logsigmoid(logits.double() * (2 * labels.double() - 1))
    return _of_class(logits.double().log_softmax(dim=-1), labels)


def scaled_logits(logits: torch.Tensor, labels: torch.Tensor, kind: TaskKind) -> torch.Tensor:
    """Return log(p / (1 - p)) of the probability of the true value, float64 (..., n, K) or (..., n, 1): nearly Gaussian over models.

    From the logits, not from probabilities, which would round to 1 (Carlini et al. 2022, section VI-A).

    Args:
        logits: (..., n, K), with any dimensions in front.
        labels: (n, K) of 0/1, or classes (n,).
        kind: Which of the two.
    """
    logits = logits.double()
    if kind == "multi_label":
        return logits * (2 * labels.double() - 1)
    others = logits.masked_fill(F.one_hot(labels, logits.shape[-1]).bool(), -math.inf)
    return _of_class(logits, labels) - others.logsumexp(dim=-1, keepdim=True)


def _of_class(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return values.gather(-1, labels.unsqueeze(-1).expand(*values.shape[:-1], 1))


def confidence_features(logits: torch.Tensor, losses: torch.Tensor, kind: TaskKind) -> torch.Tensor:
    """Return loss and confidence of each photo, float64 (n, 2), for the logistic attack.

    Confidence needs no label: the logit of the likeliest class less that of the next; the mean size of the logits of attributes.

    Args:
        logits: (n, K).
        losses: (n,).
        kind: What the logits are of.
    """
    if kind == "multi_label":
        margin = logits.double().abs().mean(dim=1)
    else:
        first, second = logits.double().topk(2, dim=1).values.unbind(dim=1)
        margin = first - second
    return torch.stack([losses.double(), margin], dim=1)
