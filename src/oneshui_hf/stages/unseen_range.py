"""The range of the loss of unseen identities' photos, which a run carries from its training, and the verdict on a support image.

The range is that of the model as it was trained, on val: the 5 % and the 95 % quantile of the loss of a photo. Two ranges are kept, for
the true labels and for those that the model itself predicts, since a request may give no labels: its losses then refer to the labels that
the model before the request predicted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..desk.entries import LIKE_UNSEEN
from .photo_range import UNLIKE

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from ..data.face_set import FaceSet
    from ..data.schema import Task

RANGE, LOSS = "unseen_loss", "support_loss"  # keys of a record's report
QUANTILES = (0.05, 0.95)
NOT_YET, TOO_MUCH, UNKNOWN = "not yet", "too much", "unknown"  # and `desk.entries.LIKE_UNSEEN`


def measure_unseen_range(model: torch.nn.Module, val: FaceSet, task: Task, accelerator: Accelerator) -> dict[str, Any]:
    """Return the entry of a record's report: the quantiles of the loss for given and for predicted labels; empty without photos.

    Args:
        model: The trained model.
        val: Photos of unseen identities.
        task: Decides the loss.
        accelerator: For several processes.
    """
    import torch

    from ..models.outputs import losses, predict, predicted_labels

    if not len(val):
        return {}
    logits = predict(model, val, accelerator)
    labels = {"given": val.labels, "predicted": predicted_labels(logits, task.kind)}
    found = {
        name: losses(logits, of, task.kind).double().quantile(torch.tensor(QUANTILES).double()).tolist() for name, of in labels.items()
    }
    return {RANGE: {**found, "photos": len(val), "people": len(val.identities.unique())}}


def judged(report: Mapping[str, Any], place: int) -> dict[str, Any]:
    """Return what a request's report states about one support image: its losses, the range and the verdict.

    Args:
        report: The report of an unlearned model's record.
        place: Which support image, from 0 on.

    Returns:
        `labels` ("given" or "predicted"), `loss_before`, `loss_after`, `unseen` (the ends of the range), `verdict` and `unlike_photos`
        (whether it is unlike the photos of unseen identities, see `photo_range`); None and "unknown" for what the report does not contain.
    """
    labels = "given" if report.get("labels") == "given" else "predicted"
    before, after = (_number((report.get(LOSS) or {}).get(when), place) for when in ("before", "after"))
    ends = unseen_ends(report, "given") if labels == "given" else range_for_predicted_labels(report)
    verdict = UNKNOWN
    if ends is not None and before is not None:
        # A loss that is no number, or infinite, is larger than every other one.
        verdict = TOO_MUCH if after is None or after > ends[1] else NOT_YET if after < ends[0] else LIKE_UNSEEN
    unlike = report.get(UNLIKE)
    is_unlike = unlike[place] if isinstance(unlike, list) and place < len(unlike) and isinstance(unlike[place], bool) else None
    return {
        "labels": labels,
        "loss_before": before,
        "loss_after": after,
        "unseen": ends,
        "verdict": verdict,
        "unlike_photos": is_unlike,
    }


def unseen_ends(report: Mapping[str, Any], labels: str) -> list[float] | None:
    """Return the ends of the range for "given" or "predicted" labels; None if the report does not contain them."""
    ends = (report.get(RANGE) or {}).get(labels)
    return ends if isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, float) for end in ends) else None


def range_for_predicted_labels(report: Mapping[str, Any]) -> list[float] | None:
    """Return the range for labels that another model predicted, such as the model before a request; None if it is unknown.

    They fit an unseen identity at most as well as the model's own predictions, and at least about as well as the true labels, so the lower
    end is that of the former, and the upper end that of the latter.
    """
    predicted, given = unseen_ends(report, "predicted"), unseen_ends(report, "given")
    return predicted if predicted is None or given is None else [predicted[0], given[1]]


def _number(values: Any, place: int) -> float | None:
    if not isinstance(values, list) or place >= len(values):
        return None
    value = values[place]
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
