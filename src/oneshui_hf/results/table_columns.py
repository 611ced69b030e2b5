"""The columns of every table: what each is called, and where its number stands among the metrics of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..card import SCORES

ATTACKS = {"loss": "loss", "logistic": "logistic", "rmia": "RMIA", "rmia_two_sided": "RMIA, two-sided", "u_lira": "U-LiRA"}
OWN_ROWS = {"original": "do nothing", "floor": "noise floor", "oracle": "oracle"}  # rows that are in every table, and what they are called
MARK = "†"  # of a difference that lies within the noise floor
TPR = {"tpr_10": "0.1", "tpr_1": "0.01"}


@dataclass(frozen=True)
class Column:
    """A column of the tables.

    Attributes:
        title: Its heading; SCORE stands for the name of the score.
        ideal: What is better: "up", or what it is to be near to: a number, or "oracle" for the oracle's; nothing where neither is.
        decimals: How many are shown.
        always: Whether it is shown even where nothing is known.
        further: Whether it is for readers who want to know more: in the second table of a report, and in no other.
    """

    title: str
    ideal: str
    decimals: int
    always: bool = False
    further: bool = False

    def named(self, score: str) -> str:
        """Return the heading where the score is "map" or "accuracy"."""
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
    "jensen_shannon": Column("Jensen-Shannon from the oracle, forget", "0", 3, further=True),
    "loss_gap": Column("loss a person, less the oracle's", "0", 3, further=True),
    "tpr_10": Column("members found at 10 % FPR, %", "10", 0, further=True),
    "tpr_1": Column("members found at 1 % FPR, %", "1", 0, further=True),
    "probe": Column("person read off the features, %", "oracle", 0, further=True),
}


@dataclass(frozen=True)
class Reading:
    """What one model has in a column.

    Attributes:
        number: None where it is not known.
        ends: Of its interval over people.
        at_least: Whether the true number is larger.
        note: A word that belongs to it.
    """

    number: float | None = None
    ends: tuple[float, float] | None = None
    at_least: bool = False
    note: str = ""


def read(metrics: Mapping[str, Any], column: str, score: str) -> Reading:
    """Return what the metrics of a model tell in a column."""
    if column in ("retain", "forget", "test"):
        return Reading(at(metrics, column, score), pair(at(metrics, "intervals", column, score)))
    if column in ("tow", "gap_closure"):
        return Reading(at(metrics, column), pair(at(metrics, "intervals", column)))
    if column in ("jensen_shannon", "loss_gap"):
        return Reading(at(metrics, "to_oracle", "forget", column))
    if column == "rmia":
        return Reading(at(metrics, "attacks", "rmia", "auc"), pair(at(metrics, "attacks", "rmia", "interval")))
    if column == "attack":
        return _strongest(metrics)
    if column in TPR:
        share = at(metrics, "attacks", str(at(metrics, "attacks", "strongest")), "tpr", TPR[column])
        return Reading(None if share is None else 100 * share)
    if column == "probe":
        people = at(metrics, "probe", "people")
        return Reading(at(metrics, "probe", "balanced_accuracy"), note="" if not people else f"chance {100 / people:.0f} %")
    steps, tried = at(metrics, "relearning", "steps"), at(metrics, "relearning", "at_most")
    return Reading(tried, at_least=tried is not None) if steps is None else Reading(steps)


def _strongest(metrics: Mapping[str, Any]) -> Reading:
    """Return the AUC of the strongest attacker, who may guess either way; the plain one where one person cannot tell the direction."""
    name = at(metrics, "attacks", "strongest")
    attack = at(metrics, "attacks", str(name)) or {}
    auc, either, ends = attack.get("auc"), attack.get("auc_either_way"), pair(attack.get("interval"))
    if either is None:
        return Reading(auc, ends, note=attack_name(name))
    if ends and auc is not None and auc < 0.5:  # the attacker looks in the other direction
        ends = (1 - ends[1], 1 - ends[0])
    return Reading(either, ends if ends and ends[0] <= either <= ends[1] else None, note=attack_name(name))


def attack_name(name: str | None) -> str:
    """Return what an attack is called."""
    return ATTACKS.get(name or "") or (name or "").replace("_", " ")


def at(found: Any, *keys: str) -> Any:
    """Return what lies at the end of some keys; None where any is missing."""
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def pair(interval: Any) -> tuple[float, float] | None:
    """Return the ends of an interval that is known."""
    low, high = interval or (None, None)
    return None if low is None or high is None else (low, high)


def fixed(number: float, decimals: int) -> str:
    """Return a number with so many decimals."""
    text = f"{number:,.{decimals}f}"
    return text.removeprefix("-") if not text.strip("-0.") else text  # no "-0.0"
