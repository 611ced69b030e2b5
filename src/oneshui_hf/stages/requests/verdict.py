"""What a request did to its photo, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...desk.entries import shows_no_change

VERDICTS = {
    "like an unseen identity": "it looks like an unseen identity now: yes",
    "not yet": "it looks like an unseen identity now: not yet",
    "too much": "it looks like an unseen identity now: no, the loss is larger than theirs (too much)",
    "unknown": "the range of unseen identities is not known, so there is no verdict",
}


def photo_line(row: Mapping[str, Any]) -> str:
    """Return one sentence about a support image: its loss before and after, the range of unseen identities, and the verdict."""
    ends = row["unseen"]
    labels = "" if row["labels"] == "given" else " for the labels that the model before predicted"
    unseen = f"; 90 % of photos of unseen identities have {ends[0]:.3f} to {ends[1]:.3f}" if ends else ""
    before = " (it did before, too, so this photo shows no change)" if shows_no_change(row) else ""
    change = f"loss {_number(row['loss_before'])} before, {_number(row['loss_after'])} after{labels}"
    unlike = " The photo is unlike those of unseen identities, so this shows little." if row["unlike_photos"] else ""
    return f"Photo: {change}{unseen}; {VERDICTS[row['verdict']]}{before}.{unlike}"


def _number(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.3f}"
