"""The verdict: each part at its boundaries, from rows as `oneshui evaluate` writes them."""

from __future__ import annotations

from typing import Any

import pytest

from oneshui_hf.results.aggregate import Group, summarise
from oneshui_hf.results.verdict import verdict
from support.report_rows import failed, row

FLOOR = {"retain": 0.5, "forget": 1.0, "test": 0.5, "tow": 98.0, "gap_closure": 0.1, "jensen_shannon": 0.02, "auc_either_way": 0.55}


def table(auc: float | None, tpr: float | None, closure: float | None, retain: float, test: float, *, floor: bool = True) -> Group:
    """The table of a method with these numbers, next to an original with 90 points on each set and a gap closure of 0."""

    def entry(label: str, closed: float | None, lost: dict[str, float], kind_auc: float | None) -> dict[str, Any]:
        made = row(label, 0.5)
        found = made["metrics"]
        attack = {"auc": kind_auc, "auc_either_way": kind_auc, "interval": [(kind_auc or 0) - 0.08, 1.0], "tpr": {"0.1": tpr}}
        found["attacks"] = {"strongest": "loss", "loss": attack} if kind_auc is not None else {"strongest": None}
        found |= {"gap_closure": closed, "noise_floor": FLOOR if floor else None, "collapse": None, "tow": None}
        for name in ("retain", "test"):
            found[name]["map"] = 90.0 - lost.get(name, 0.0)
        return made

    original = entry("original", None if closure is None else 0.0, {}, 0.99)
    return summarise([original, entry("ssd", closure, {"retain": retain, "test": test}, auc)])[0]


def of_method(group: Group) -> str:
    return verdict(next(line for line in group.lines if line.row == "method"), group)


def test_all_parts_are_stated_in_order() -> None:
    assert of_method(table(0.9, 0.9, 0.42, 2.0, 0.6)) == (
        "An attacker still identifies 9 of 10 forgotten photos; 42 % of the gap to the oracle is closed; "
        "the retain set lost 2.0 points, unseen identities (test) lost 0.6."
    )


@pytest.mark.parametrize(
    ("tpr", "words"),
    [
        (1.0, "identifies all forgotten photos"),
        (0.99, "identifies more than 9 of 10 forgotten photos"),
        (0.94, "identifies 9 of 10 forgotten photos"),
        (0.2, "identifies 2 of 10 forgotten photos"),
        (0.19, "separates forgotten photos from those of unseen identities (AUC 0.90)"),
        (None, "separates forgotten photos from those of unseen identities (AUC 0.90)"),
    ],
)
def test_share_of_photos_is_never_rounded_up_to_all(tpr: float | None, words: str) -> None:
    assert f"An attacker still {words};" in of_method(table(0.9, tpr, 0.5, 1.0, 1.0))


def test_attack_within_the_noise_floor_names_no_photos() -> None:
    assert "identifies" in of_method(table(0.5501, 0.9, 0.5, 1.0, 1.0))
    assert of_method(table(0.5499, 0.9, 0.5, 1.0, 1.0)).startswith("An attacker finds no more than on another oracle (AUC 0.55);")


def test_without_a_noise_floor_the_interval_decides() -> None:
    assert "identifies" in of_method(table(0.59, 0.9, 0.5, 1.0, 1.0, floor=False))
    expected = "No attack is shown to be better than chance (AUC 0.57, interval from 0.49);"
    assert of_method(table(0.57, 0.9, 0.5, 1.0, 1.0, floor=False)).startswith(expected)


def test_no_attack_and_no_oracle_are_stated() -> None:
    assert of_method(table(None, None, None, 1.0, 1.0)).startswith("No attack was measured; the retain set lost")
    assert "gap" not in of_method(table(0.9, 0.9, None, 1.0, 1.0))


@pytest.mark.parametrize(
    ("closure", "words"),
    [
        (0.09, "no forgetting beyond the noise floor"),
        (0.11, "11 % of the gap to the oracle is closed"),
        (-0.09, "no forgetting beyond the noise floor"),
        (-0.11, "moved away from the oracle's (gap closure -0.11)"),
        (1.09, "109 % of the gap to the oracle is closed"),
        (1.11, "is below the oracle's (gap closure 1.11)"),
    ],
)
def test_forgetting_at_the_noise_floor(closure: float, words: str) -> None:
    assert words in of_method(table(0.9, 0.9, closure, 1.0, 1.0))


@pytest.mark.parametrize(
    ("retain", "test", "words"),
    [
        (0.4, 0.3, "the retain set lost 0.4 points, unseen identities (test) lost 0.3, within the noise floor."),
        (0.6, 0.3, "the retain set lost 0.6 points, unseen identities (test) lost 0.3 (within the noise floor)."),
        (0.6, -0.7, "the retain set lost 0.6 points, unseen identities (test) gained 0.7."),
        (0.0, -0.6, "the retain set lost 0.0 points (within the noise floor), unseen identities (test) gained 0.6."),
    ],
)
def test_losses_at_the_noise_floor(retain: float, test: float, words: str) -> None:
    assert of_method(table(0.9, 0.9, 0.5, retain, test)).endswith(words)


def test_collapsed_model_is_no_evidence_of_forgetting() -> None:
    assert of_method(table(0.51, 0.1, 0.9, 10.0, 1.0)) == (
        "Collapsed: the retain set lost 10.0 points, unseen identities (test) lost 1.0; "
        "an attack that finds nothing in such a model is no evidence of forgetting."
    )


def test_unchanged_original_and_failed_models() -> None:
    rows = [row("original", 0), row("jit", 0), failed("ssd", "why")]
    [group] = summarise(rows)
    found = {line.label: verdict(line, group) for line in group.lines}
    assert found["do nothing"] == "An attacker identifies 3 of 10 photos of the forget set; no one has been forgotten."
    assert found["jit"] == "The model is unchanged: it is the original; an attacker identifies 3 of 10 photos of the forget set."
    assert found["ssd"] == "It failed, so there is no result."


def test_without_the_original_the_losses_are_unknown() -> None:
    [group] = summarise([row("ssd", 0.5)])
    assert verdict(next(line for line in group.lines if line.row == "method"), group).endswith(
        "what others lost is unknown, since the original was not measured."
    )


def test_losses_are_paired_by_seed() -> None:
    """The method failed for the seed whose original has the higher score, so the mean of all originals would give another loss."""
    rows = [row("original", 0, seed=0), row("original", 0, seed=1), row("ssd", 0.5, seed=0), failed("ssd", "why", seed=1)]
    rows[1]["metrics"]["retain"]["map"] += 4.0
    [group] = summarise(rows)
    [line] = [line for line in group.lines if line.row == "method"]
    assert line.values["retain"].change == rows[2]["metrics"]["retain"]["map"] - rows[0]["metrics"]["retain"]["map"]
