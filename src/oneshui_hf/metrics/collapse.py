"""The collapse alarm: a model that lost its task. An attack that finds nothing in such a model is no evidence of forgetting.

This module imports no torch, since tables and cards use it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

WATCHED = ("retain", "test")  # sets whose score must stay
POINTS = 5.0  # a smaller drop, in points of score, is no collapse
MARK = "‡"  # of a collapsed model, in every table
EXPLANATION = (
    f"{MARK}: collapsed. The retain or test score is below the original's by more than {POINTS:g} points, and by more than the oracle's "
    "own drop plus the noise floor. An attack that finds nothing in such a model is no evidence of forgetting."
)

Scores = Mapping[str, float | None]


def collapse(scores: Scores, original: Scores | None, oracle: Scores | None = None, floor: Scores | None = None) -> dict[str, Any] | None:
    """Return the `collapse` entry of `metrics.json`; None without an original, from whose score a drop is counted.

    A set collapsed if its drop is above the limit: 5 points or, where that is larger, the oracle's own drop plus the noise floor.
    Retraining with fewer people may cost as much, and no unlearned model is expected to lose less than the oracle. The drop of an oracle
    that scores above the original, or is unknown, counts as 0, and so does an unknown noise floor.

    Args:
        scores: Score of each set in percent.
        original: The same of the model before unlearning.
        oracle: The same of the model retrained without the forget set.
        floor: The noise floor of each set, in points.

    Returns:
        `drop` and `limit` of retain and test, in points, and `collapsed`: whether a drop is above its limit; None where no drop is known.
    """
    if original is None:
        return None
    entry: dict[str, Any] = {}
    for name in WATCHED:
        expected, noise = _drop(oracle or {}, original, name) or 0.0, _known(floor or {}, name) or 0.0
        entry[name] = {"drop": _drop(scores, original, name), "limit": max(POINTS, max(0.0, expected) + noise)}
    is_known = any(entry[name]["drop"] is not None for name in WATCHED)
    return entry | {"collapsed": bool(collapsed_sets(entry)) if is_known else None}


def collapsed_sets(entry: Mapping[str, Any] | None) -> list[str]:
    """Return the sets whose drop is above its limit.

    Args:
        entry: `collapse` of a model's metrics; a published one may lack numbers.
    """
    found = {name: (entry or {}).get(name) or {} for name in WATCHED}
    drops = {name: (of.get("drop"), of.get("limit")) for name, of in found.items()}
    return [name for name, (drop, limit) in drops.items() if drop is not None and limit is not None and drop > limit]


def _drop(scores: Scores, original: Scores, name: str) -> float | None:
    """Return how far a set's score is below the original's; None where either is unknown."""
    score, before = _known(scores, name), _known(original, name)
    return None if score is None or before is None else before - score


def _known(scores: Scores, name: str) -> float | None:
    score = scores.get(name)
    return None if score is None or math.isnan(score) else score
