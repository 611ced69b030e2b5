"""The columns of every table: their headings, and where their values are found in a model's metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..card import SCORES
from ..metrics.attack_names import ATTACKS
from ..sets import COMPARED

BUILTIN_ROWS = {"original": "do nothing", "floor": "noise floor", "oracle": "oracle"}  # rows of every table, and their labels
MARK = "†"  # of a difference within the noise floor
TPR_KEYS = {"tpr_10": "0.1", "tpr_1": "0.01"}


@dataclass(frozen=True)
class Column:
    """A column of the tables.

    Attributes:
        title: Its heading; SCORE is a placeholder for the name of the score.
        ideal: "up" where higher is better; else the ideal value: a number, or "oracle" for the oracle's value; empty where there is none.
        decimals: Number of decimals.
        always: Whether it is shown even if no model has a value.
        secondary: Whether it is shown in the second table of a report only.
    """

    title: str
    ideal: str
    decimals: int
    always: bool = False
    secondary: bool = False

    def heading(self, score: str) -> str:
        """Return the heading for the score "map" or "accuracy"."""
        return self.title.replace("SCORE", SCORES[score])


COLUMNS = {  # those of the paper first
    "retain": Column("retain SCORE", "up", 1, always=True),
    "forget": Column("forget SCORE", "oracle", 1, always=True),
    "test": Column("test SCORE", "up", 1, always=True),
    "tow": Column("ToW", "up", 1, always=True),
    "gap_closure": Column("gap closure", "1", 2),
    "attack": Column("strongest attack AUC", "0.5", 3),
    "rmia": Column("RMIA AUC", "0.5", 3),
    "relearning": Column("relearning steps", "oracle", 0),
    "jensen_shannon": Column("Jensen-Shannon divergence from the oracle, forget", "0", 3, secondary=True),
    "loss_gap": Column("loss per person minus the oracle's", "0", 3, secondary=True),
    "tpr_10": Column("TPR at 10 % FPR, %", "10", 0, secondary=True),
    "tpr_1": Column("TPR at 1 % FPR, %", "1", 0, secondary=True),
    "probe": Column("identity probe balanced accuracy, %", "oracle", 0, secondary=True),
    "person_level": Column("person-level AUC", "0.5", 3, secondary=True),
    "owner_outputs": Column("owner rank (outputs)", "oracle", 1, secondary=True),
    "owner_weights": Column("owner rank (weights)", "oracle", 1, secondary=True),
    "bystanders": Column("loss rise of the worst tenth, retain", "oracle", 3, secondary=True),
}
OWNERS = {"owner_outputs": ("outputs", "loss_rise"), "owner_weights": ("weights",)}  # where a rank is found in `difference`


@dataclass(frozen=True)
class Cell:
    """The value of one model in a column.

    Attributes:
        number: None where unknown.
        ends: Ends of its interval over people.
        at_least: Whether the number is a lower bound.
        note: A short text shown with it.
    """

    number: float | None = None
    ends: tuple[float, float] | None = None
    at_least: bool = False
    note: str = ""


def read_cell(metrics: Mapping[str, Any], column: str, score: str) -> Cell:
    """Return the value of a column from the metrics of a model.

    Args:
        metrics: Content of `metrics.json`.
        column: Key of `COLUMNS`.
        score: "map" or "accuracy".
    """
    if column in COMPARED:
        return Cell(get_nested(metrics, column, score), known_ends(get_nested(metrics, "intervals", column, score)))
    if column in ("tow", "gap_closure"):
        return Cell(get_nested(metrics, column), known_ends(get_nested(metrics, "intervals", column)))
    if column in ("jensen_shannon", "loss_gap"):
        return Cell(get_nested(metrics, "to_oracle", "forget", column))
    if column == "rmia":
        return Cell(get_nested(metrics, "attacks", "rmia", "auc"), known_ends(get_nested(metrics, "attacks", "rmia", "interval")))
    if column == "attack":
        return _strongest_attack(metrics)
    if column in TPR_KEYS:
        strongest = str(get_nested(metrics, "attacks", "strongest"))
        rate = get_nested(metrics, "attacks", strongest, "tpr", TPR_KEYS[column])
        return Cell(None if rate is None else 100 * rate)
    if column == "person_level":
        found = get_nested(metrics, "person_level")
        return Cell(get_nested(found, "auc"), known_ends(get_nested(found, "interval")))
    if column in OWNERS:
        owner = get_nested(metrics, "difference", *OWNERS[column], "owner")
        candidates = get_nested(owner, "candidates")
        note = "" if candidates is None else f"of {candidates:g}"
        return Cell(get_nested(owner, "rank"), known_ends(get_nested(owner, "intervals", "rank")), note=note)
    if column == "bystanders":
        return Cell(get_nested(metrics, "bystanders", "retain", "loss_change", "worst_tenth"))
    if column == "probe":
        people = get_nested(metrics, "probe", "people")
        return Cell(get_nested(metrics, "probe", "balanced_accuracy"), note="" if not people else f"chance {100 / people:.0f} %")
    steps, limit = get_nested(metrics, "relearning", "steps"), get_nested(metrics, "relearning", "at_most")
    return Cell(limit, at_least=limit is not None) if steps is None else Cell(steps)


def _strongest_attack(metrics: Mapping[str, Any]) -> Cell:
    """Return the strongest attack's AUC in its best direction; the plain AUC if one person leaves the direction undetermined."""
    name = get_nested(metrics, "attacks", "strongest")
    attack = get_nested(metrics, "attacks", str(name)) or {}
    auc, best, ends = attack.get("auc"), attack.get("auc_either_way"), known_ends(attack.get("interval"))
    if best is None:
        return Cell(auc, ends, note=attack_name(name))
    if ends and auc is not None and auc < 0.5:  # the attacker uses the opposite direction
        ends = (1 - ends[1], 1 - ends[0])
    return Cell(best, ends if ends and ends[0] <= best <= ends[1] else None, note=attack_name(name))


def attack_name(name: str | None) -> str:
    """Return the display name of an attack."""
    return ATTACKS.get(name or "") or (name or "").replace("_", " ")


def get_nested(value: Any, *keys: str) -> Any:
    """Return the value at a path of keys in nested mappings; None where a key is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def known_ends(interval: Any) -> tuple[float, float] | None:
    """Return the ends of an interval; None where one is unknown."""
    low, high = interval or (None, None)
    return None if low is None or high is None else (low, high)


def format_fixed(number: float, decimals: int) -> str:
    """Return a number with a fixed number of decimals and no negative zero."""
    text = f"{number:,.{decimals}f}"
    return text.removeprefix("-") if not text.strip("-0.") else text
