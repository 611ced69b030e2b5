"""What is said of a model on one set of photos."""

from __future__ import annotations

from typing import Any

import torch

from ..data.schema import Task
from ..models.outputs import losses
from .functional import accuracy, mean_average_precision


def score(logits: torch.Tensor, labels: torch.Tensor, task: Task) -> float:
    """Return the task's score in percent: mAP or accuracy."""
    return mean_average_precision(logits, labels)[0] if task.kind == "multi_label" else accuracy(logits, labels)


def summarise(logits: torch.Tensor, labels: torch.Tensor, task: Task) -> dict[str, Any]:
    """Return score (`map` or `accuracy`, percent), mean loss and number of photos; for mAP, also how many labels had no positive."""
    row: dict[str, Any] = {"images": len(labels), "loss": losses(logits, labels, task.kind).double().mean().item()}
    if task.kind == "multi_label":
        row["map"], row["labels_left_out"] = mean_average_precision(logits, labels)
    else:
        row["accuracy"] = accuracy(logits, labels)
    return row
