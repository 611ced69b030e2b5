"""Reading of metrics and curves of a run or a benchmark for a report.

Only known fields are read, and all of them are validated here, so that a damaged file is reported before anything is drawn. Names of
people, paths and reasons of failure are not read.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..card import OUTDATED_MAP, SCORES, has_outdated_map
from ..errors import OneshuiError, UsageError
from ..metrics.attack_names import ATTACKS
from ..metrics.collapse import WATCHED
from ..printable import printable
from ..public_names import LOCAL_DATASET, METHOD_NAME, dataset_name
from ..runs import CURVES, MANIFEST, METRICS, ROWS, Run, read_checked, read_object
from ..sets import COMPARED
from .aggregate import Row
from .figures import Curve, PersonLosses
from .table_columns import BUILTIN_ROWS, attack_name, get_nested

PARSE_ERRORS = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)  # raised by a file of unexpected content
PATH = re.compile(r"(^|\s)(~|\.{0,2})/\S|\\")
LARGEST = 1e30  # a larger number counts as unknown


@dataclass(frozen=True)
class LossHistograms:
    """Histograms of losses: edges (b + 1,), and counts (b,) of forget and test for the original, where known, and for the model."""

    edges: Sequence[float]
    before: tuple[Sequence[float], Sequence[float]] | None
    after: tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Result:
    """One model of one seed.

    Attributes:
        row: The row as in a benchmark, with the fields that a report shows.
        people: Losses of each forget identity.
        losses: Histograms.
        roc: ROC curves by the display name of the attack.
    """

    row: Row
    people: Sequence[PersonLosses] = ()
    losses: LossHistograms | None = None
    roc: Mapping[str, Curve] = field(default_factory=dict)


def run_label(run: Run) -> str:
    """Return the label of a run's model: the name of its method, or the label of a built-in row."""
    method = str(run.record.report.get("method"))
    return BUILTIN_ROWS.get(run.record.kind) or (method if METHOD_NAME.fullmatch(method) else "the unlearned model")


def load_run(run: Run, original: Run | None = None, oracle: Run | None = None) -> list[Result]:
    """Return the metrics of a run as a benchmark row, and rows of original and oracle.

    These have the metrics of the two runs, if they are evaluated and are the models that the run was compared with. Values that are
    missing there, or all without these runs, are those that follow from the definition or were measured for the comparison. A run with
    the weights of the original has no second row of it.

    Args:
        run: The run.
        original: Its original model.
        oracle: The oracle.

    Raises:
        UsageError: The run was not evaluated.
        OneshuiError: A file of the run is damaged; damaged files of the other two count as missing.
    """
    result = _load_own(run)
    own, compared = result.row["metrics"], _compared_with(run)
    measured = {part: get_nested(own, part, "oracle") for part in ("difference", "person_level", "bystanders")}
    by_definition = {"original": {"gap_closure": 0.0}, "oracle": {"tow": 100.0, "gap_closure": 1.0, **measured}}
    is_compared = result.row["row"] == "method" and own["gap_closure"] is not None
    found = [result]
    for kind, other in (("original", original), ("oracle", oracle)):
        if kind == run.record.kind or (result.row["unchanged"] and kind == "original"):
            continue
        weights = compared.get(kind)
        other_result = _load_other(other, own["score"]) if other and weights and other.record.weights == weights else None
        known = by_definition[kind] if is_compared else {}
        if other_result:
            metrics = other_result.row["metrics"]
            missing = {name: value for name, value in known.items() if metrics.get(name) is None}
            row = {**result.row, "row": kind, "unchanged": False, "reads": [], "cost": {}, "metrics": {**metrics, **missing}}
            found.append(Result(row, other_result.people, other_result.losses, other_result.roc))
        elif known:
            row = {**result.row, "row": kind, "unchanged": False, "reads": [], "cost": {}, "metrics": {"score": own["score"], **known}}
            found.append(Result(row))
    return found


def _compared_with(run: Run) -> Mapping[str, Any]:
    """Return the hashes of the weights of original and oracle that an evaluated run was compared with."""
    return read_checked(run.path / METRICS).get("compared_with") or {}


def _load_other(run: Run, score: str) -> Result | None:
    """Return the metrics of another evaluated run; None where they are missing, damaged or of another score."""
    try:
        result = _load_own(run)
    except OneshuiError:
        return None
    return result if result.row["metrics"]["score"] == score else None


def _load_own(run: Run) -> Result:
    """Return the metrics of a run as a benchmark row, with `unchanged`: whether the weights are those of the original."""
    remedy = f"run `oneshui evaluate --run {run.path}` first"
    for name in (METRICS, CURVES):
        if not (run.path / name).is_file():
            raise UsageError(f"{run.path} contains no {name}: {remedy}.")
    metrics, curves = (_read(run.path / name, remedy) for name in (METRICS, CURVES))
    if "score" not in metrics or metrics.get("key") != curves.get("key"):
        raise UsageError(f"{METRICS} and {CURVES} in {run.path} are from different evaluations, or from an older version: {remedy}.")
    report = run.record.report
    row = {
        "dataset": dataset_name(run.record), "forget": run.request_size, "seed": int(run.record.seed),
        "row": run.record.kind if run.record.kind in BUILTIN_ROWS else "method", "method": run_label(run), "reads": report.get("reads"),
        "state": "done", "metrics": metrics, "curves": curves, "cost": {"apply_s": report.get("seconds")},
    }  # fmt: skip
    try:
        result = _validate(row)
        before = (metrics.get("compared_with") or {}).get("original")
    except PARSE_ERRORS:
        raise OneshuiError(f"{METRICS} or {CURVES} in {run.path} is damaged: {remedy}.") from None
    unchanged = result.row["row"] == "method" and before is not None and run.record.weights == before
    return dataclasses.replace(result, row={**result.row, "unchanged": unchanged})


def load_benchmark(source: Path) -> list[Result]:
    """Return the rows of a benchmark.

    Raises:
        UsageError: There are no rows.
        OneshuiError: A row is damaged or exists twice, or all rows failed.
    """
    files = sorted((source / ROWS).glob("*.json"))
    if (source / MANIFEST).is_file():  # all other files belong to an earlier grid
        listed = read_object(source / MANIFEST).get("rows")
        files = [file for file in files if isinstance(listed, list) and file.stem in listed]
    if not files:
        raise UsageError(f"{source / ROWS} contains no rows yet: run the benchmark first.")
    found: dict[tuple[Any, ...], Result] = {}
    for file in files:
        raw = _read(file, "remove it and run the benchmark again")
        try:
            result = _validate(raw)
        except PARSE_ERRORS:
            raise OneshuiError(f"{file} is damaged: it is not a benchmark row. Remove it and run the benchmark again.") from None
        key = tuple(result.row[name] for name in ("dataset", "forget", "seed", "row", "method"))
        if key in found:
            raise OneshuiError(f"{file} is a second row of '{key[-1]}' with seed {key[2]}: remove the outdated file.")
        found[key] = result
    if all(result.row["state"] == "failed" for result in found.values()):
        raise OneshuiError(f"Every row in {source / ROWS} failed, so there is nothing to report.")
    return list(found.values())


def _read(file: Path, remedy: str) -> dict[str, Any]:
    try:
        return read_checked(file)
    except OneshuiError as error:
        raise OneshuiError(f"{str(error).removesuffix('.')}: {remedy}.") from None


def _validate(raw: Mapping[str, Any]) -> Result:
    """Return a row with its known fields. Other fields are not read; the reason of a failure may contain a path."""
    if raw["row"] not in (*BUILTIN_ROWS, "method") or raw["state"] not in ("done", "failed"):
        raise ValueError
    row = {
        "dataset": _name(raw["dataset"], LOCAL_DATASET),
        "forget": _integer(raw["forget"]),
        "seed": _integer(raw["seed"]),
        "row": raw["row"],
        "method": BUILTIN_ROWS.get(raw["row"]) or _name(raw["method"], "a method"),
        "reads": [_text(name) for name in raw.get("reads") or []],
        "state": raw["state"],
    }
    if row["state"] == "failed":
        return Result(row)
    row["metrics"] = metrics = _select(raw["metrics"], METRICS_FIELDS)
    row["cost"] = {name: _number(value) for name, value in (raw.get("cost") or {}).items()}
    if metrics["score"] not in SCORES or not all(metrics[name] for name in COMPARED):
        raise ValueError
    if has_outdated_map(raw["metrics"]):
        metrics["cannot_tell"].append(OUTDATED_MAP)
    curves = raw.get("curves") or {}
    return Result(
        row,
        [PersonLosses(*(_number(person.get(model)) for model in ("original", "model", "oracle"))) for person in curves.get("people") or []],
        _losses(curves["losses"]) if curves.get("losses") else None,
        {attack_name(_attack(name)): _curve(curve) for name, curve in (curves.get("roc") or {}).items() if curve["fpr"]},
    )


def _select(raw: Any, fields: Any) -> Any:
    """Return the fields of a value that `fields` lists: nested names, whose leaves are functions that validate a value.

    A list with one entry stands for a list of such values.
    """
    if isinstance(fields, list):
        return [_select(item, fields[0]) for item in raw or []]
    if not isinstance(fields, Mapping):
        return fields(raw)
    return None if raw is None else {name: _select(raw.get(name), of_name) for name, of_name in fields.items()}


def _attacks(raw: Any) -> dict[str, Any]:
    attacks = {_attack(name): _select(attack, ATTACK_FIELDS) for name, attack in (raw or {}).items() if name != "strongest"}
    strongest = (raw or {}).get("strongest")
    if strongest is not None and attacks[_attack(strongest)] is None:
        raise ValueError
    return attacks | {"strongest": None if strongest is None else _attack(strongest)}


def _curve(raw: Mapping[str, Any]) -> Curve:
    fpr, tpr, (smallest,) = _numbers(raw["fpr"]), _numbers(raw["tpr"]), _numbers([raw["smallest_fpr"]])
    is_increasing = all(sorted(rates) == rates and rates[0] >= 0 and rates[-1] <= 1 for rates in (fpr, tpr))
    if len(fpr) != len(tpr) or not is_increasing or not 1e-12 < smallest <= 1:
        raise ValueError
    return Curve(fpr, tpr, smallest)


def _losses(raw: Mapping[str, Any]) -> LossHistograms:
    edges = _numbers(raw["edges"])

    def counts(of: Mapping[str, Any]) -> tuple[list[float], list[float]]:
        forget, test = _numbers(of["forget"]), _numbers(of["test"])
        if not len(forget) == len(test) == len(edges) - 1 > 0 or min(*forget, *test) < 0 or sorted(set(edges)) != edges:
            raise ValueError
        return forget, test

    return LossHistograms(edges, counts(raw["before"]) if raw.get("before") else None, counts(raw["after"]))


def _number(value: Any) -> float | None:
    """Return a number; None for None and for a number that is too large."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value) if abs(value) < LARGEST else None


def _numbers(values: Any) -> list[float]:
    numbers = [number for value in values if (number := _number(value)) is not None]
    if len(numbers) < len(values):
        raise ValueError
    return numbers


def _ends(interval: Any) -> list[float | None] | None:
    if interval is None:
        return None
    low, high = interval
    return [_number(low), _number(high)]


def _flag(value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise TypeError
    return value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _text(value: Any) -> str:
    """Return a line of text that is safe in a page and in a figure."""
    if not isinstance(value, str):
        raise TypeError
    return " ".join(printable(value).split())


def _name(value: Any, replacement: str) -> str:
    """Return the name of a data set or a method, or the replacement where it is empty or a path, which must not be published."""
    name = _text(value)
    return replacement if not name or PATH.search(value) else name


def _attack(name: Any) -> str:
    return name if name in ATTACKS else _name(name, "an attack")


def _number_fields(*names: str) -> dict[str, Callable[[Any], float | None]]:
    return dict.fromkeys(names, _number)


SCORE_INTERVALS = dict.fromkeys(SCORES, _ends)
SET_FIELDS = {"images": _integer, "people": _integer, **_number_fields(*SCORES)}
ATTACK_FIELDS = {**_number_fields("auc", "auc_either_way"), "interval": _ends, "tpr": _number_fields("0.1", "0.01")}
COLLAPSE_FIELDS = {**dict.fromkeys(WATCHED, _number_fields("drop", "limit")), "collapsed": _flag}
SEPARATION_FIELDS = {name: {"auc": _number, "interval": _ends} for name in ("retain", "test")}
OWNER_NUMBERS = ("rank", "rank_1_share", "photo_rank", "support_rank")
OWNER_FIELDS = {
    **_number_fields("people", "candidates", "batch_share", *OWNER_NUMBERS),
    "intervals": dict.fromkeys(OWNER_NUMBERS, _ends),
}
DIFFERENCE_SCORE_FIELDS = {"photos": SEPARATION_FIELDS, "people": SEPARATION_FIELDS, "owner": OWNER_FIELDS}
DIFFERENCE_FIELDS = {"outputs": dict.fromkeys(("loss_rise", "logit_distance"), DIFFERENCE_SCORE_FIELDS), "weights": DIFFERENCE_SCORE_FIELDS}
PERSON_LEVEL_FIELDS = {**_number_fields("people", "unseen_people", "auc", "auc_either_way"), "interval": _ends}
CHANGE_FIELDS = _number_fields("mean", "sd", "worst_tenth", "largest")
BYSTANDER_SET_FIELDS = {"people": _number, "loss_change": CHANGE_FIELDS, "beyond_spread": _number, "exposure_change": CHANGE_FIELDS}
BYSTANDER_FIELDS = dict.fromkeys(("retain", "test"), BYSTANDER_SET_FIELDS)
GROUP_FIELDS = {
    "label": _integer,
    "name": lambda name: None if name is None else _text(name),
    **_number_fields("people_with", "people_without", "difference", "oracle"),
    "interval": _ends,
    "differs": _flag,
}
METRICS_FIELDS = {
    "score": _text,
    **dict.fromkeys(COMPARED, SET_FIELDS),
    **_number_fields("tow", "gap_closure"),
    "intervals": {**dict.fromkeys(COMPARED, SCORE_INTERVALS), "tow": _ends, "gap_closure": _ends},
    "to_oracle": {"forget": _number_fields("jensen_shannon", "loss_gap")},
    "attacks": _attacks,
    "probe": _number_fields("balanced_accuracy", "people"),
    "relearning": {"steps": _number, "at_most": _integer},
    "noise_floor": _number_fields(*COMPARED, "tow", "gap_closure", "jensen_shannon", "auc_either_way"),
    "collapse": COLLAPSE_FIELDS,
    "difference": {**DIFFERENCE_FIELDS, "oracle": DIFFERENCE_FIELDS},
    "person_level": {**PERSON_LEVEL_FIELDS, "oracle": PERSON_LEVEL_FIELDS},
    "bystanders": {
        **BYSTANDER_FIELDS,
        "oracle": BYSTANDER_FIELDS,
        "groups": {"retain": [GROUP_FIELDS], "test": [GROUP_FIELDS], "left_out": _number},
    },
    "cannot_tell": lambda sentences: [_text(sentence) for sentence in sentences or []],
}
