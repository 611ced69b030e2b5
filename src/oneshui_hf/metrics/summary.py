"""The one score by which a task is judged."""

from __future__ import annotations

import torch

from ..data.schema import Task, TaskKind
from .functional import accuracy, mean_average_precision


def score(logits: torch.Tensor, labels: torch.Tensor, task: Task) -> float:
    """Return the task's score in percent: mAP or accuracy."""
    return score_of(logits, labels, task.kind)


def score_of(logits: torch.Tensor, labels: torch.Tensor, kind: TaskKind) -> float:
    """Return mAP of attributes, or the accuracy of classes, in percent."""
    return mean_average_precision(logits, labels)[0] if kind == "multi_label" else accuracy(logits, labels)
