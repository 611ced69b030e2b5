"""Aggregation of benchmark rows: means over seeds with their intervals, in the order of every table.

A row is one model in one cell: {"dataset", "forget", "seed", "row": "original" | "floor" | "oracle" | "method", "method": label,
"reads": [...], "state": "done" | "failed", "metrics": content of `metrics.json`, "cost": seconds and megabytes}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..metrics.collapse import WATCHED, collapse
from ..metrics.intervals import is_beyond_noise, t_interval
from ..sets import COMPARED
from .table_columns import BUILTIN_ROWS, COLUMNS, get_nested, read_cell

Row = Mapping[str, Any]

ORDER = ("original", "floor", "oracle", "method")
LEVELS = {"tow": 100.0, "attack": 0.5, "jensen_shannon": 0.0}  # values without any effect of the seed; all other floors are differences


@dataclass(frozen=True)
class Value:
    """One number of a table.

    Attributes:
        mean: Mean over the seeds that did not fail; None where it is unknown for one of them.
        low: Lower end of its 95 % interval: Student's over seeds; for a single seed the bootstrap's over people. None where it is
            unknown, and where nothing varies, as for values that follow from the definition.
        high: Upper end.
        seeds: Number of seeds.
        at_least: Whether the mean is a lower bound: relearning that was stopped counts with the steps that were tried.
        difference: Whether it is the size of a difference, as most values of the noise floor are.
        change: Mean difference from doing nothing, paired by seed; None where that is unknown.
        within_floor: Whether the change is within the noise floor and therefore shows nothing; None where that is unknown.
        note: A short text that all seeds share, such as the name of the strongest attack.
    """

    mean: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    at_least: bool = False
    difference: bool = False
    change: float | None = None
    within_floor: bool | None = None
    note: str = ""

    @property
    def prefix(self) -> str:
        """Symbol in front of the number."""
        return "≥ " if self.at_least else "±" if self.difference else ""


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        row: "original" (doing nothing), "floor" (another seed's oracle), "oracle" or "method".
        label: Its name.
        reads: The sets that the method reads at request time.
        done: Number of seeds for which it did not fail; 0 is failed.
        seeds: Number of seeds of the group.
        values: By column.
        collapsed: Whether the model collapsed for at least one seed, see `metrics.collapse`.
        unchanged: Whether a method returned the original model for every seed: the same weights, or the same scores and losses.
        best: Whether it has the highest ToW of the methods that read the support image alone, above doing nothing by more than the noise
            floor, and neither failed nor collapsed for any seed. A collapsed model is never the best in any column.
    """

    row: str
    label: str
    reads: tuple[str, ...]
    done: int
    seeds: int
    values: Mapping[str, Value]
    collapsed: bool = False
    unchanged: bool = False
    best: bool = False

    @property
    def is_one_shot(self) -> bool:
        """Whether a request needs the support images alone."""
        return set(self.reads) <= {"support"}

    @property
    def is_upper_reference(self) -> bool:
        """Whether it is a method that reads training data at request time."""
        return self.row == "method" and not self.is_one_shot


@dataclass(frozen=True)
class Group:
    """One table: the rows of a data set and a request size.

    Attributes:
        dataset: The data set's name.
        forget: Number of forget identities.
        seeds: The seeds, sorted.
        score: "map" or "accuracy", both in percent.
        columns: The columns that are shown, keys of `COLUMNS`.
        secondary: The columns of the second table of a report.
        floor: Noise floor by column, mean over seeds: the difference of two oracles' scores, of ToW from 100, of gap closure from 1, of the
            strongest attack's AUC from 0.5, of the Jensen-Shannon divergence from 0. Empty without reference models.
        lines: Doing nothing, noise floor, oracle, methods that read the support image alone by decreasing ToW, methods that read training
            data by decreasing ToW.
    """

    dataset: str
    forget: int
    seeds: tuple[int, ...]
    score: str
    columns: tuple[str, ...]
    secondary: tuple[str, ...]
    floor: Mapping[str, float]
    lines: tuple[Line, ...]


def sections(lines: Sequence[Line]) -> list[list[Line]]:
    """Return the non-empty parts of a table: built-in rows, methods that read the support image alone, upper references."""
    builtin = [line for line in lines if line.row != "method"]
    methods = [line for line in lines if line.row == "method"]
    parts = [builtin, [line for line in methods if not line.is_upper_reference], [line for line in methods if line.is_upper_reference]]
    return [part for part in parts if part]


def summarise(rows: Sequence[Row]) -> list[Group]:
    """Return a table for each data set and request size, sorted by both.

    A method that returns the original model has the numbers of the row "do nothing", which every table has, so it has no row of its own.
    """
    rows = with_collapse(_without_copies_of_original(rows))
    keys = sorted({(row["dataset"], row["forget"]) for row in rows})
    return [_group([row for row in sort_rows(rows) if (row["dataset"], row["forget"]) == key]) for key in keys]


def sort_rows(rows: Sequence[Row]) -> list[Row]:
    """Return rows sorted by data set, request size, seed and kind, methods by name."""
    return sorted(rows, key=lambda row: (row["dataset"], row["forget"], row["seed"], ORDER.index(row["row"]), row_name(row)))


def with_collapse(rows: Sequence[Row]) -> list[Row]:
    """Return the rows, each with `collapse` among its metrics. Earlier versions did not store it; it follows from the rows of the seed."""
    done = [row for row in rows if row["state"] == "done"]
    scores = {(*_cell(row), row["row"]): _watched_scores(row) for row in done if row["row"] in ("original", "oracle")}

    def entry(row: Row) -> Any:
        original, oracle = (scores.get((*_cell(row), kind)) for kind in ("original", "oracle"))
        metrics = row["metrics"]
        return metrics.get("collapse") or collapse(_watched_scores(row), original, oracle, metrics.get("noise_floor"))

    return [{**row, "metrics": {**row["metrics"], "collapse": entry(row)}} if row["state"] == "done" else row for row in rows]


def _cell(row: Row) -> tuple[Any, ...]:
    return row["dataset"], row["forget"], row["seed"]


def _watched_scores(row: Row) -> dict[str, float | None]:
    return {name: get_nested(row["metrics"], name, row["metrics"]["score"]) for name in WATCHED}


def _without_copies_of_original(rows: Sequence[Row]) -> list[Row]:
    """Return the rows without methods that read nothing at the request and have the original's numbers for every seed."""

    def label(row: Row) -> tuple[Any, ...]:
        return row["dataset"], row["forget"], row_name(row)

    originals = {(row["dataset"], row["forget"], row["seed"]): row for row in rows if row["row"] == "original" and row["state"] == "done"}
    differing = set()
    for row in rows:
        original = originals.get((row["dataset"], row["forget"], row["seed"]))
        is_copy = original is not None and not row["reads"] and _is_unchanged(row, original)
        if row["row"] != "method" or not is_copy:
            differing.add(label(row))
    return [row for row in rows if label(row) in differing]


def _is_unchanged(row: Row, original: Row | None) -> bool:
    """Return whether a row is of the original model: its weights, as `unchanged` of a run's row states, or its scores and losses."""
    if row["state"] != "done" or row["row"] != "method":
        return False
    return bool(row.get("unchanged")) or (original is not None and _set_numbers(row) == _set_numbers(original))


def _set_numbers(row: Row) -> list[Any]:
    """Return score and loss of each compared set, and the ToW."""
    metrics = row["metrics"]
    return [*((metrics.get(name) or {}).get(key) for name in COMPARED for key in (metrics["score"], "loss")), metrics.get("tow")]


def row_name(row: Row) -> str:
    """Return the label of a row."""
    return str(row["method"]) if row["row"] == "method" else BUILTIN_ROWS[row["row"]]


def _group(rows: Sequence[Row]) -> Group:
    """Return the table of the sorted rows of one data set and request size."""
    seeds = tuple(sorted({row["seed"] for row in rows}))
    done = [row for row in rows if row["state"] == "done"]
    score = next((row["metrics"]["score"] for row in done), "map")
    floor = _noise_floor(done)
    originals = {row["seed"]: row for row in done if row["row"] == "original"}
    baseline = {seed: row["metrics"] for seed, row in originals.items()}
    lines = []
    for kind, name in sorted({(row["row"], row_name(row)) for row in rows}, key=lambda key: (ORDER.index(key[0]), key[1])):
        own = [row for row in rows if (row["row"], row_name(row)) == (kind, name)]
        measured = {row["seed"]: row["metrics"] for row in own if row["state"] == "done"}
        values = {column: _value(measured, column, score) for column in COLUMNS}
        if kind in ("oracle", "method"):
            values = {column: _compared(value, measured, baseline, column, score, floor) for column, value in values.items()}
        collapsed = any(get_nested(metrics, "collapse", "collapsed") for metrics in measured.values())
        unchanged = all(_is_unchanged(row, originals.get(row["seed"])) for row in own)
        lines.append(Line(kind, name, tuple(sorted(own[0]["reads"])), len(measured), len(seeds), values, collapsed, unchanged))
    if floor and not any(line.row == "floor" for line in lines):
        lines.append(_floor_line(floor, len(seeds)))
    lines.sort(key=lambda line: (ORDER.index(line.row), line.is_upper_reference, *_descending(line.values["tow"].mean), line.label))
    known = {column for line in lines if line.row != "floor" for column, value in line.values.items() if value.mean is not None}
    shown = [name for name, column in COLUMNS.items() if column.always or name in known]
    main, secondary = (tuple(name for name in shown if COLUMNS[name].secondary is flag) for flag in (False, True))
    return Group(rows[0]["dataset"], rows[0]["forget"], seeds, score, main, secondary, floor, tuple(_with_best(lines)))


def _descending(value: float | None) -> tuple[bool, float]:
    """Return a key that sorts values in descending order, unknown ones last."""
    return value is None, -(value or 0.0)


def _with_best(lines: Sequence[Line]) -> list[Line]:
    """Return the lines, which are sorted by ToW, with the best one marked where one qualifies."""
    baseline = next((line.values["tow"].mean for line in lines if line.row == "original"), None)
    candidates = [line for line in lines if line.row == "method" and line.is_one_shot and line.done == line.seeds and not line.collapsed]
    best, tow = (candidates[0], candidates[0].values["tow"]) if candidates else (None, Value())
    is_clear = baseline is not None and tow.mean is not None and tow.mean > baseline and tow.within_floor is False
    return [replace(line, best=is_clear and line is best) for line in lines]


def _value(measured: Mapping[int, Row], column: str, score: str) -> Value:
    """Return the mean over seeds of one column."""
    cells = [read_cell(metrics, column, score) for metrics in measured.values()]
    numbers = [cell.number for cell in cells if cell.number is not None]
    if not cells or len(numbers) < len(cells):  # a mean without the seed that failed would be biased upwards
        return Value()
    notes = {cell.note for cell in cells}
    value = Value(sum(numbers) / len(numbers), seeds=len(numbers), note=notes.pop() if len(notes) == 1 else "")
    if any(cell.at_least for cell in cells):
        return replace(value, at_least=True)
    over_seeds = t_interval(numbers)
    low, high = (over_seeds.low, over_seeds.high) if len(numbers) > 1 else cells[0].ends or (0.0, 0.0)
    return replace(value, low=low, high=high) if low < high else value


def _compared(
    value: Value, measured: Mapping[int, Row], baseline: Mapping[int, Row], column: str, score: str, floor: Mapping[str, float]
) -> Value:
    """Return the value with its mean difference from doing nothing, paired by seed, and whether that is within the noise floor."""
    seeds = [seed for seed in measured if seed in baseline]
    pairs = [[read_cell(metrics[seed], column, score).number for metrics in (measured, baseline)] for seed in seeds]
    differences = [after - before for after, before in pairs if after is not None and before is not None]
    if value.mean is None or not differences:
        return value
    change = sum(differences) / len(differences)
    return replace(value, change=change, within_floor=None if column not in floor else not is_beyond_noise(change, floor[column]))


def _noise_floor(done: Sequence[Row]) -> dict[str, float]:
    """Return the noise floor by column, the mean over seeds. Empty without reference models."""
    by_seed: dict[int, Row] = {}
    for row in done:
        if row["metrics"].get("noise_floor") and row["row"] != "floor":
            by_seed.setdefault(row["seed"], row["metrics"]["noise_floor"])
    floor = {}
    for column in (*COMPARED, "gap_closure", *LEVELS):
        values = [of_seed.get("auc_either_way" if column == "attack" else column) for _, of_seed in sorted(by_seed.items())]
        numbers = [abs(value - LEVELS.get(column, 0.0)) for value in values if value is not None]
        if numbers:
            floor[column] = sum(numbers) / len(numbers)
    return floor


def _floor_line(floor: Mapping[str, float], seeds: int) -> Line:
    """Return the noise floor as a line: the values of another seed's oracle for the columns of `LEVELS`, differences for all others."""
    values = {column: Value(floor.get(column), seeds=seeds, difference=True) for column in COLUMNS}
    for column in LEVELS.keys() & floor.keys():
        difference = -floor[column] if column == "tow" else floor[column]
        values[column] = Value(LEVELS[column] + difference, seeds=seeds)
    return Line("floor", BUILTIN_ROWS["floor"], (), seeds, seeds, values)
