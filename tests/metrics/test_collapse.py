"""The collapse alarm: its limits are exact, and it is silent where a drop is unknown or the oracle's own."""

from __future__ import annotations

import math
from typing import Any

import pytest

from oneshui_hf.metrics.collapse import POINTS, WATCHED, collapse

ORIGINAL = {"retain": 90.0, "forget": 95.0, "val": 80.0, "test": 80.0}


def lower(**drops: float) -> dict[str, float]:
    """Return the original's scores, less some points."""
    return {name: score - drops.get(name, 0.0) for name, score in ORIGINAL.items()}


@pytest.mark.parametrize("name", WATCHED)
@pytest.mark.parametrize(
    ("oracle_drop", "noise", "limit"),
    [
        (None, None, 5.0),
        (None, 2.0, 5.0),
        (None, 6.5, 6.5),  # the noise floor is above 5 points
        (0.0, 2.0, 5.0),
        (-3.0, 6.0, 6.0),  # an oracle that gains has no drop
        (4.0, 1.0, 5.0),
        (4.0, 1.5, 5.5),  # the oracle's drop plus the noise floor
        (8.0, 0.5, 8.5),
        (8.0, None, 8.0),
    ],
)
def test_drop_must_be_above_the_limit(name: str, oracle_drop: float | None, noise: float | None, limit: float) -> None:
    oracle = None if oracle_drop is None else lower(**{name: oracle_drop})
    floor = None if noise is None else dict.fromkeys(ORIGINAL, noise)
    for drop, expected in ((limit, False), (limit + 0.125, True)):
        found = collapse(lower(**{name: drop}), ORIGINAL, oracle, floor)
        assert found is not None
        assert (found[name], found["collapsed"]) == ({"drop": drop, "limit": limit}, expected)


def test_forgetting_and_gains_are_no_collapse() -> None:
    found = collapse(lower(forget=60.0, val=60.0, retain=-30.0, test=-30.0), ORIGINAL)
    assert found == {"retain": {"drop": -30.0, "limit": POINTS}, "test": {"drop": -30.0, "limit": POINTS}, "collapsed": False}


def test_oracle_never_collapses() -> None:
    for drop in (0.0, 4.0, 40.0):
        oracle = lower(retain=drop, test=drop)
        found = collapse(oracle, ORIGINAL, oracle, dict.fromkeys(ORIGINAL, 0.0))
        assert found is not None
        assert found["collapsed"] is False


@pytest.mark.parametrize("unknown", [None, math.nan])
def test_unknown_scores(unknown: Any) -> None:
    assert collapse(ORIGINAL, None) is None
    one = collapse({"retain": unknown, "test": 10.0}, ORIGINAL)
    assert one is not None
    assert (one["retain"]["drop"], one["collapsed"]) == (None, True)
    both = collapse({"retain": unknown, "test": unknown}, ORIGINAL, {"retain": unknown}, {"test": unknown})
    assert both == {"retain": {"drop": None, "limit": 5.0}, "test": {"drop": None, "limit": 5.0}, "collapsed": None}
