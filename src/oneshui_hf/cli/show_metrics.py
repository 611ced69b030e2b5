"""How metrics and comparisons of models are printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .printing import _print, table

SETS = ("retain", "forget", "val", "test")


def metrics(result: dict[str, Any]) -> None:
    """Print the metrics of one model, each with the way to read it."""
    score = result["score"]
    title = {"map": "mAP %", "accuracy": "accuracy %"}[score]
    rows = [
        [
            name,
            str(result[name]["images"]),
            str(result[name]["people"]),
            _with_ends(result[name][score], result["intervals"][name][score], 1),
            _number(result[name]["balanced_accuracy"], 1),
            _with_ends(result[name]["loss"], result["intervals"][name]["loss"], 3),
        ]
        for name in SETS
    ]
    table(["set", "images", "people", f"{title} [95 %]", "balanced acc. %", "loss [95 %]"], rows)
    left_out = {name: result[name].get("labels_left_out", 0) for name in SETS}
    if any(left_out.values()):
        words = ", ".join(f"{count} in {name}" for name, count in left_out.items() if count)
        _print(f"Labels without a positive, left out of the mean: {words}.")
    _print_comparison(result)
    _print_attacks(result["attacks"])
    if probe := result["probe"]:
        _print(
            f"Identity probe: who of {probe['people']} forgotten people is on a photo is read off the features in "
            f"{probe['balanced_accuracy']:.1f} % of cases (chance {100 / probe['people']:.1f}; compare with the oracle's)."
        )
    if back := result["relearning"]:
        steps = f"{back['steps']} steps" if back["steps"] is not None else f"more than {back['at_most']} steps"
        _print(f"Relearning: {steps} until the forget loss is back (compare with the oracle's; fewer means that knowledge is left).")
    _print("What these numbers cannot tell:")
    for sentence in result["cannot_tell"]:
        _print(f"- {sentence}")


def _print_comparison(result: dict[str, Any]) -> None:
    """Tell how near a model comes to the oracle."""
    if result["tow"] is None:
        _print("ToW and gap closure need an oracle: make one with `oneshui retrain`, name it with --oracle.")
        return
    ends, gap = result["intervals"], result["gap_closure"]
    if gap is None:
        closure = "unknown (original and oracle do not differ by more than noise)"
    else:
        closure = f"{_with_ends(gap, ends['gap_closure'], 2)} (0 is doing nothing, 1 is the oracle)"
    tow = _with_ends(result["tow"], ends["tow"], 1)
    _print(f"ToW {tow} (100 is the oracle; doing nothing can score high too). Gap closure {closure}.")
    near = result["to_oracle"]["forget"]
    _print(
        f"On forget, from the oracle: loss {_number(near['loss_gap'], 3)} apart (0 is ideal, below 0 is forgotten too little), "
        f"{_number(near['largest_loss_gap'], 3)} for the person furthest off; predictions {_number(near['jensen_shannon'], 4)} apart "
        "(Jensen-Shannon, 0 is ideal)."
    )
    if floor := result["noise_floor"]:
        _print(
            f"Noise floor, what another seed of the oracle changes: retain {_number(floor['retain'], 1)}, "
            f"forget {_number(floor['forget'], 1)}, test {_number(floor['test'], 1)} points, gap closure "
            f"{_number(floor.get('gap_closure'), 2)}; its ToW is {_number(floor['tow'], 1)}, the strongest attack on the oracle "
            f"itself {_number(floor['auc_either_way'], 3)}. Smaller differences say nothing."
        )


def _print_attacks(attacks: dict[str, Any]) -> None:
    """Print what each attacker achieves."""
    fprs = (0.1, 0.01)
    rows = []
    for name, attack in attacks.items():
        if name == "strongest":
            continue
        caught = [_number(attack["tpr"].get(str(fpr)), 2) for fpr in fprs]
        mark = " *" if name == attacks["strongest"] else ""
        rows.append(
            [
                name.replace("_", "-") + mark,
                _with_ends(attack["auc"], attack["interval"], 3),
                _number(attack["auc_either_way"], 3),
                _number(attack["balanced_accuracy"], 3),
                *caught,
            ]
        )
    columns = ["attack", "AUC [95 %]", "either way", "bal. acc.", *(f"TPR at {fpr:.0%}" for fpr in fprs)]
    table(columns, rows, "Can the forget photos be told from strangers'? AUC 0.5 is ideal, above and below betray")
    _print("* the strongest, by its AUC either way: of an attacker who may guess in both directions, for whom below 0.5 is chance.")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _with_ends(value: float | None, ends: Sequence[float] | None, digits: int) -> str:
    """Return a number with its interval, where it has one."""
    told = _number(value, digits)
    return f"{told} [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]" if ends else told


def comparison(rows: Sequence[dict[str, Any]], title: str) -> None:
    """Print one row a model: scores and losses of retain, forget and test, ToW, gap closure."""
    score = "map" if "map" in rows[0]["metrics"]["retain"] else "accuracy"
    name = {"map": "mAP", "accuracy": "acc."}[score]
    columns = [
        "model",
        *(f"{s} {what}" for s in ("retain", "forget", "test") for what in (name, "loss")),
        "ToW",
        "gap closure",
    ]
    cells = []
    for row in rows:
        measured = row["metrics"]
        numbers = [_number(measured[s][key], digits) for s in ("retain", "forget", "test") for key, digits in ((score, 1), ("loss", 3))]
        cells.append([row["model"], *numbers, _number(measured["tow"], 1), _number(measured["gap_closure"], 2)])
    table(columns, cells, title)


def demo(result: dict[str, Any]) -> None:
    """Print the demo's comparison, and what to do next."""
    comparison(result["rows"], "Forgetting generated people, one photo each")
    _print("ToW: 100 is the oracle. Gap closure: 0 is doing nothing, 1 is the oracle, on the forget set.")
    _print(f"The runs are in {result['folder']}/. Next: {result['next']}")
