"""The verdict of a report: one sentence for each model, from the numbers of its line in the tables."""

from __future__ import annotations

from ..metrics.intervals import is_beyond_noise
from .aggregate import Group, Line, Value
from .table_columns import format_fixed

TWICE_CHANCE = 20.0  # percent; below this TPR at 10 % FPR the sentence states the AUC instead, since chance identifies 10 %
LOSSES = {"retain": "the retain set", "test": "unseen identities (test)"}


def verdict(line: Line, group: Group) -> str:
    """Return what an attacker still finds, how much was forgotten, and what the retain set and unseen identities lost, in one sentence.

    A part that was not measured is named or left out; a part within the noise floor, or whose interval includes chance, is stated as such.

    Args:
        line: A line of the table: doing nothing, the oracle or a method.
        group: The table.
    """
    if not line.done:
        return "It failed, so there is no result."
    if line.row == "original":
        return _sentence(_attack_part(line, group), "no one has been forgotten")
    if line.unchanged:
        return _sentence("the model is unchanged: it is the original", _attack_part(line, group))
    if line.collapsed:
        return _sentence(f"collapsed: {_loss_part(line)}", "an attack that finds nothing in such a model is no evidence of forgetting")
    return _sentence(_attack_part(line, group), _forgetting_part(line, group), _loss_part(line))


def _sentence(*parts: str) -> str:
    text = "; ".join(part for part in parts if part)
    return f"{text[0].upper()}{text[1:]}."


def _attack_part(line: Line, group: Group) -> str:
    auc, tpr = line.values["attack"], line.values["tpr_10"].mean
    if auc.mean is None:
        return "no attack was measured"
    is_before = line.row == "original" or line.unchanged
    still = "still " if line.row == "method" and not is_before else ""
    photos = "photos of the forget set" if is_before else "forgotten photos"
    shown = f"AUC {format_fixed(auc.mean, 2)}"
    if "attack" in group.floor:
        if not is_beyond_noise(auc.mean - 0.5, group.floor["attack"]):
            return f"an attacker finds no more than on another oracle ({shown})"
    elif auc.low is not None and auc.low <= 0.5:
        return f"no attack is shown to be better than chance ({shown}, interval from {format_fixed(auc.low, 2)})"
    if tpr is not None and tpr >= TWICE_CHANCE:
        return f"an attacker {still}identifies {_of_ten(tpr)} {photos}"
    return f"an attacker {still}separates {photos} from those of unseen identities ({shown})"


def _of_ten(percent: float) -> str:
    """Return a share of photos in words; `all` is exact, and a share below it is never rounded up to it."""
    if percent >= 100:
        return "all"
    return f"{round(percent / 10)} of 10" if percent < 95 else "more than 9 of 10"


def _forgetting_part(line: Line, group: Group) -> str:
    """Return how much of the gap to the oracle is closed; empty without an oracle."""
    closed = line.values["gap_closure"]
    if closed.mean is None or line.row == "oracle":
        return ""
    if closed.within_floor:
        return "no forgetting beyond the noise floor"
    if closed.mean < 0:
        return f"the score on the forget set moved away from the oracle's (gap closure {format_fixed(closed.mean, 2)})"
    if closed.mean - 1 > group.floor.get("gap_closure", 0.0):
        return f"the score on the forget set is below the oracle's (gap closure {format_fixed(closed.mean, 2)})"
    return f"{format_fixed(100 * closed.mean, 0)} % of the gap to the oracle is closed"


def _loss_part(line: Line) -> str:
    """Return what the retain set and unseen identities lost, in points of score."""
    changes = {name: line.values[name] for name in LOSSES if line.values[name].change is not None}
    if not changes:
        return "what others lost is unknown, since the original was not measured"
    if all(value.within_floor for value in changes.values()):
        return f"{_listed(changes, marked=False)}, within the noise floor"
    return _listed(changes, marked=True)


def _listed(changes: dict[str, Value], *, marked: bool) -> str:
    parts: list[str] = []
    for name, value in changes.items():
        assert value.change is not None
        verb = "gained" if value.change > 0.05 else "lost"
        unit = "" if parts else " points"
        text = f"{LOSSES[name]} {verb} {format_fixed(abs(value.change), 1)}{unit}"
        parts.append(f"{text} (within the noise floor)" if marked and value.within_floor else text)
    return ", ".join(parts)
