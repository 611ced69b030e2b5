"""What was measured, read from the files of a run or of a benchmark for a report.

Only what is known is read, and all of it is checked here, so that a damaged file is told before anything is drawn. Names of people, paths
and reasons of failure are left where they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..card import SCORES
from ..errors import OneshuiError, UsageError
from ..public_names import LOCAL_DATASET, METHOD_NAME, dataset_name
from ..runs import CURVES, MANIFEST, METRICS, ROWS, Run, read_object
from .aggregate import Row
from .figures import Curve, Person
from .table_columns import ATTACKS, OWN_ROWS, attack_name

DAMAGED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)  # what reading a file that is not as it was raises
PATH = re.compile(r"(^|\s)(~|\.{0,2})/\S|\\")
LARGEST = 1e30  # beyond it a number is none


@dataclass(frozen=True)
class Losses:
    """Histograms of losses: edges (b + 1,), counts (b,) of forget and test, of the original where it is known and of the model."""

    edges: Sequence[float]
    before: tuple[Sequence[float], Sequence[float]] | None
    after: tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Result:
    """One model of one seed.

    Attributes:
        row: As a benchmark has it, of what a report tells.
        people: Losses of those who asked.
        losses: Histograms.
        roc: ROC curves by what the attack is called.
    """

    row: Row
    people: Sequence[Person] = ()
    losses: Losses | None = None
    roc: Mapping[str, Curve] = field(default_factory=dict)


def run_label(run: Run) -> str:
    """Return what a run's model is called: its method's name, or what every table calls it."""
    method = str(run.record.report.get("method"))
    return OWN_ROWS.get(run.record.kind) or (method if METHOD_NAME.fullmatch(method) else "the unlearned model")


def of_run(run: Run) -> list[Result]:
    """Read what `oneshui evaluate` wrote into a run, as a benchmark's row, and the rows beside it as far as they hold by definition.

    Raises:
        UsageError: It was not evaluated.
        OneshuiError: A file is damaged.
    """
    again = f"run `oneshui evaluate --run {run.path}` first"
    for name in (METRICS, CURVES):
        if not (run.path / name).is_file():
            raise UsageError(f"{run.path} holds no {name}: {again}.")
    metrics, curves = (read_object(run.path / name) for name in (METRICS, CURVES))
    if "score" not in metrics or metrics.get("key") != curves.get("key"):
        raise UsageError(f"{METRICS} and {CURVES} in {run.path} are of different evaluations, or of an older version: {again}.")
    told = run.record.report
    row = {
        "dataset": dataset_name(run.record), "forget": run.request_size, "seed": int(run.record.seed),
        "row": run.record.kind if run.record.kind in OWN_ROWS else "method", "method": run_label(run), "reads": told.get("reads"),
        "state": "done", "metrics": metrics, "curves": curves, "cost": {"apply_s": told.get("seconds")},
    }  # fmt: skip
    try:
        result = _checked(row)
    except DAMAGED:
        raise OneshuiError(f"{METRICS} or {CURVES} in {run.path} is damaged: {again}.") from None
    if result.row["row"] != "method" or result.row["metrics"]["gap_closure"] is None:
        return [result]
    score = result.row["metrics"]["score"]
    by_definition = {"original": {"gap_closure": 0.0}, "oracle": {"tow": 100.0, "gap_closure": 1.0}}
    about = {**result.row, "reads": [], "cost": {}}
    return [result, *(Result({**about, "row": kind, "metrics": {"score": score, **known}}) for kind, known in by_definition.items())]


def of_benchmark(source: Path) -> list[Result]:
    """Read the rows of a benchmark.

    Raises:
        UsageError: There are none.
        OneshuiError: One is damaged, or none is done.
    """
    files = sorted((source / ROWS).glob("*.json"))
    if (source / MANIFEST).is_file():  # the others are of an earlier grid
        listed = read_object(source / MANIFEST).get("rows")
        files = [file for file in files if isinstance(listed, list) and file.stem in listed]
    if not files:
        raise UsageError(f"{source / ROWS} holds no rows yet: run the benchmark first.")
    found: dict[tuple[Any, ...], Result] = {}
    for file in files:
        told = read_object(file)
        try:
            result = _checked(told)
        except DAMAGED:
            raise OneshuiError(f"{file} is damaged: it is no row of a benchmark. Remove it and run the benchmark again.") from None
        key = tuple(result.row[name] for name in ("dataset", "forget", "seed", "row", "method"))
        if key in found:
            raise OneshuiError(f"{file} tells of '{key[-1]}' with seed {key[2]} a second time: remove the one that is out of date.")
        found[key] = result
    if all(result.row["state"] == "failed" for result in found.values()):
        raise OneshuiError(f"Every row in {source / ROWS} failed, so there is nothing to report.")
    return list(found.values())


def _checked(told: Mapping[str, Any]) -> Result:
    """Return a row with what is known of it. Whatever else stands there is left where it is; the reason of a failure may name a path."""
    if told["row"] not in (*OWN_ROWS, "method") or told["state"] not in ("done", "failed"):
        raise ValueError
    row = {
        "dataset": _word(told["dataset"], LOCAL_DATASET),
        "forget": _whole(told["forget"]),
        "seed": _whole(told["seed"]),
        "row": told["row"],
        "method": OWN_ROWS.get(told["row"]) or _word(told["method"], "a method"),
        "reads": [_text(name) for name in told.get("reads") or []],
        "state": told["state"],
    }
    if row["state"] == "failed":
        return Result(row)
    row["metrics"] = metrics = _known(told["metrics"], METRICS_TOLD)
    row["cost"] = {name: _number(value) for name, value in (told.get("cost") or {}).items()}
    if metrics["score"] not in SCORES or not all(metrics[name] for name in ("retain", "forget", "test")):
        raise ValueError
    curves = told.get("curves") or {}
    return Result(
        row,
        [Person(*(_number(person.get(who)) for who in ("original", "model", "oracle"))) for person in curves.get("people") or []],
        _losses(curves["losses"]) if curves.get("losses") else None,
        {attack_name(_attack(name)): _curve(curve) for name, curve in (curves.get("roc") or {}).items() if curve["fpr"]},
    )


def _known(told: Any, shape: Any) -> Any:
    """Return of what is told what has a place in a shape: nested names, and at their ends functions that check what stands there."""
    if not isinstance(shape, Mapping):
        return shape(told)
    return None if told is None else {name: _known(told.get(name), part) for name, part in shape.items()}


def _attacks(told: Any) -> dict[str, Any]:
    found = {_attack(name): _known(attack, ATTACK) for name, attack in (told or {}).items() if name != "strongest"}
    strongest = (told or {}).get("strongest")
    if strongest is not None and found[_attack(strongest)] is None:
        raise ValueError
    return found | {"strongest": None if strongest is None else _attack(strongest)}


def _curve(told: Mapping[str, Any]) -> Curve:
    fpr, tpr, (smallest,) = _numbers(told["fpr"]), _numbers(told["tpr"]), _numbers([told["smallest_fpr"]])
    rising = all(sorted(rates) == rates and rates[0] >= 0 and rates[-1] <= 1 for rates in (fpr, tpr))
    if len(fpr) != len(tpr) or not rising or not 1e-12 < smallest <= 1:
        raise ValueError
    return Curve(fpr, tpr, smallest)


def _losses(told: Mapping[str, Any]) -> Losses:
    edges = _numbers(told["edges"])

    def counts(of: Mapping[str, Any]) -> tuple[list[float], list[float]]:
        forget, test = _numbers(of["forget"]), _numbers(of["test"])
        if not len(forget) == len(test) == len(edges) - 1 > 0 or min(*forget, *test) < 0 or sorted(set(edges)) != edges:
            raise ValueError
        return forget, test

    return Losses(edges, counts(told["before"]) if told.get("before") else None, counts(told["after"]))


def _number(value: Any) -> float | None:
    """Return a number; None where there is none."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value) if abs(value) < LARGEST else None


def _numbers(values: Any) -> list[float]:
    found = [number for value in values if (number := _number(value)) is not None]
    if len(found) < len(values):
        raise ValueError
    return found


def _ends(interval: Any) -> list[float | None] | None:
    if interval is None:
        return None
    low, high = interval
    return [_number(low), _number(high)]


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _text(value: Any) -> str:
    """Return a line of text without what no page may hold."""
    if not isinstance(value, str):
        raise TypeError
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())


def _word(value: Any, instead: str) -> str:
    """Return the name of a data set or of a method. A path is told to nobody."""
    word = _text(value)
    return instead if not word or PATH.search(word) else word


def _attack(name: Any) -> str:
    return name if name in ATTACKS else _word(name, "an attack")


def _numbers_of(*names: str) -> dict[str, Callable[[Any], float | None]]:
    return dict.fromkeys(names, _number)


SCORE_ENDS = dict.fromkeys(SCORES, _ends)
SET = {"images": _whole, "people": _whole, **_numbers_of(*SCORES)}
ATTACK = {**_numbers_of("auc", "auc_either_way"), "interval": _ends, "tpr": _numbers_of("0.1", "0.01")}
METRICS_TOLD = {
    "score": _text,
    "retain": SET,
    "forget": SET,
    "test": SET,
    **_numbers_of("tow", "gap_closure"),
    "intervals": {"retain": SCORE_ENDS, "forget": SCORE_ENDS, "test": SCORE_ENDS, "tow": _ends, "gap_closure": _ends},
    "to_oracle": {"forget": _numbers_of("jensen_shannon", "loss_gap")},
    "attacks": _attacks,
    "probe": _numbers_of("balanced_accuracy", "people"),
    "relearning": {"steps": _number, "at_most": _whole},
    "noise_floor": _numbers_of("retain", "forget", "test", "tow", "gap_closure", "jensen_shannon", "auc_either_way"),
    "cannot_tell": lambda sentences: [_text(sentence) for sentence in sentences or []],
}
