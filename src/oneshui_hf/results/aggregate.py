"""What the rows of a benchmark come to: means over seeds with their intervals, in the order of every table.

A row is one model in one cell: {"dataset", "forget", "seed", "row": "original" | "floor" | "oracle" | "method", "method": label,
"reads": [...], "state": "done" | "failed", "metrics": what `evaluate` measured, "cost": seconds and megabytes}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..metrics.intervals import beyond_noise, t_interval
from .table_columns import COLUMNS, OWN_ROWS, read

Row = Mapping[str, Any]

ORDER = ("original", "floor", "oracle", "method")
LEVELS = {"tow": 100.0, "attack": 0.5, "jensen_shannon": 0.0}  # where another seed makes no difference; all other floors are differences


@dataclass(frozen=True)
class Value:
    """One number of a table.

    Attributes:
        mean: Mean over the seeds that worked; None where one of them does not know it.
        low: Lower end of its 95 % interval: Student's over seeds; for a single seed the bootstrap's over people. None where it is not
            known, and where nothing varies, as with what holds by definition.
        high: Upper end.
        seeds: How many seeds it rests on.
        at_least: Whether the true mean is larger: relearning that was given up on counts with the steps that were tried.
        difference: Whether it is the size of a difference, as most of the noise floor is, and not a level.
        within_floor: Whether its difference from doing nothing, paired by seed, is no larger than the noise floor, so that it says nothing;
            None where that is not known.
        note: A word that belongs to it and that all seeds share, such as the name of the strongest attack.
    """

    mean: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    at_least: bool = False
    difference: bool = False
    within_floor: bool | None = None
    note: str = ""

    @property
    def sign(self) -> str:
        """What stands before the number."""
        return "≥ " if self.at_least else "±" if self.difference else ""


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        row: "original" (doing nothing), "floor" (another seed's oracle), "oracle" or "method".
        label: What it is called.
        reads: What the method reads at the request.
        done: For how many seeds it worked; 0 is failed.
        seeds: How many seeds the group has.
        values: By column.
        best: Whether it has the highest ToW of the methods that read the photo alone, above doing nothing and beyond the noise floor, and
            worked for every seed.
    """

    row: str
    label: str
    reads: tuple[str, ...]
    done: int
    seeds: int
    values: Mapping[str, Value]
    best: bool = False

    @property
    def one_photo(self) -> bool:
        """Whether a request needs the handed-in photos alone."""
        return set(self.reads) <= {"support"}

    @property
    def reference(self) -> bool:
        """Whether it is a method that reads training data at the request: an upper reference."""
        return self.row == "method" and not self.one_photo


@dataclass(frozen=True)
class Group:
    """One table: a data set and a size of request.

    Attributes:
        dataset: The data set's name.
        forget: How many people ask.
        seeds: The seeds, in order.
        score: "map" or "accuracy", both in percent.
        columns: The columns that are shown, keys of `COLUMNS`.
        further: The same of the second table of a report.
        floor: By column, the difference that another seed alone makes, mean over seeds: of two oracles' scores, of ToW from 100, of gap
            closure from 1, of the strongest attack's AUC from 0.5, of the Jensen-Shannon divergence from 0. Empty without reference models.
        lines: Doing nothing, noise floor, oracle, methods that read the photo alone by falling ToW, those that read training data
            likewise.
    """

    dataset: str
    forget: int
    seeds: tuple[int, ...]
    score: str
    columns: tuple[str, ...]
    further: tuple[str, ...]
    floor: Mapping[str, float]
    lines: tuple[Line, ...]


def sections(lines: Sequence[Line]) -> list[list[Line]]:
    """Return lines in their parts: a table's own, methods that read the photo alone, upper references. Without empty ones."""
    own = [line for line in lines if line.row != "method"]
    methods = [line for line in lines if line.row == "method"]
    parts = [own, [line for line in methods if not line.reference], [line for line in methods if line.reference]]
    return [part for part in parts if part]


def summarise(rows: Sequence[Row]) -> list[Group]:
    """Return a table for each data set and size of request, sorted by both."""
    keys = sorted({(row["dataset"], row["forget"]) for row in rows})
    return [_group([row for row in sort_rows(rows) if (row["dataset"], row["forget"]) == key]) for key in keys]


def sort_rows(rows: Sequence[Row]) -> list[Row]:
    """Return rows by data set, request, seed and kind, methods by name."""
    return sorted(rows, key=lambda row: (row["dataset"], row["forget"], row["seed"], ORDER.index(row["row"]), row_name(row)))


def row_name(row: Row) -> str:
    """Return what a row is called."""
    return str(row["method"]) if row["row"] == "method" else OWN_ROWS[row["row"]]


def _group(rows: Sequence[Row]) -> Group:
    """Summarise the rows of one data set and size of request, which are sorted."""
    seeds = tuple(sorted({row["seed"] for row in rows}))
    done = [row for row in rows if row["state"] == "done"]
    score = next((row["metrics"]["score"] for row in done), "map")
    floor = _noise_floor(done)
    nothing = {row["seed"]: row["metrics"] for row in done if row["row"] == "original"}
    lines = []
    for kind, name in sorted({(row["row"], row_name(row)) for row in rows}, key=lambda key: (ORDER.index(key[0]), key[1])):
        ours = [row for row in rows if (row["row"], row_name(row)) == (kind, name)]
        measured = {row["seed"]: row["metrics"] for row in ours if row["state"] == "done"}
        values = {column: _value(measured, column, score) for column in COLUMNS}
        if kind in ("oracle", "method"):
            values = {column: replace(v, within_floor=_within(measured, nothing, column, score, floor)) for column, v in values.items()}
        lines.append(Line(kind, name, tuple(sorted(ours[0]["reads"])), len(measured), len(seeds), values))
    if floor and not any(line.row == "floor" for line in lines):
        lines.append(_floor_line(floor, len(seeds)))
    lines.sort(key=lambda line: (ORDER.index(line.row), line.reference, *_falling(line.values["tow"].mean), line.label))
    known = {column for line in lines if line.row != "floor" for column, value in line.values.items() if value.mean is not None}
    shown = [name for name, column in COLUMNS.items() if column.always or name in known]
    main, further = (tuple(name for name in shown if COLUMNS[name].further is part) for part in (False, True))
    return Group(rows[0]["dataset"], rows[0]["forget"], seeds, score, main, further, floor, tuple(_with_best(lines)))


def _falling(value: float | None) -> tuple[bool, float]:
    """Return a key that sorts from high to low, what is not known last."""
    return value is None, -(value or 0.0)


def _with_best(lines: Sequence[Line]) -> list[Line]:
    """Return the lines, which are sorted by ToW, with the best one marked, if any is."""
    nothing = next((line.values["tow"].mean for line in lines if line.row == "original"), None)
    able = [line for line in lines if line.row == "method" and line.one_photo and line.done == line.seeds]
    best, tow = (able[0], able[0].values["tow"]) if able else (None, Value())
    clear = nothing is not None and tow.mean is not None and tow.mean > nothing and tow.within_floor is False
    return [replace(line, best=clear and line is best) for line in lines]


def _value(measured: Mapping[int, Row], column: str, score: str) -> Value:
    """Return the mean over seeds of one column."""
    found = [read(metrics, column, score) for metrics in measured.values()]
    numbers = [reading.number for reading in found if reading.number is not None]
    if not found or len(numbers) < len(found):  # a mean without the seed that broke down would flatter
        return Value()
    notes = {reading.note for reading in found}
    about = Value(sum(numbers) / len(numbers), seeds=len(numbers), note=notes.pop() if len(notes) == 1 else "")
    if any(reading.at_least for reading in found):
        return replace(about, at_least=True)
    over_seeds = t_interval(numbers)
    low, high = (over_seeds.low, over_seeds.high) if len(numbers) > 1 else found[0].ends or (0.0, 0.0)
    return replace(about, low=low, high=high) if low < high else about


def _within(ours: Mapping[int, Row], nothing: Mapping[int, Row], column: str, score: str, floor: Mapping[str, float]) -> bool | None:
    """Return whether the mean difference from doing nothing, seed by seed, is within the noise floor."""
    if column not in floor or _value(ours, column, score).mean is None:
        return None
    pairs = [(read(ours[seed], column, score).number, read(nothing[seed], column, score).number) for seed in ours if seed in nothing]
    differences = [mine - base for mine, base in pairs if mine is not None and base is not None]
    return not beyond_noise(sum(differences) / len(differences), floor[column]) if differences else None


def _noise_floor(done: Sequence[Row]) -> dict[str, float]:
    """Return, by column, the difference that another seed alone makes: the mean over seeds. Empty without reference models."""
    by_seed: dict[int, Row] = {}
    for row in done:
        if row["metrics"].get("noise_floor") and row["row"] != "floor":
            by_seed.setdefault(row["seed"], row["metrics"]["noise_floor"])
    floor = {}
    for column in ("retain", "forget", "test", "gap_closure", *LEVELS):
        found = [seen.get("auc_either_way" if column == "attack" else column) for _, seen in sorted(by_seed.items())]
        numbers = [abs(number - LEVELS.get(column, 0.0)) for number in found if number is not None]
        if numbers:
            floor[column] = sum(numbers) / len(numbers)
    return floor


def _floor_line(floor: Mapping[str, float], seeds: int) -> Line:
    """Return the noise floor as a line: differences, but levels of columns that have them, as another seed's oracle has them."""
    values = {column: Value(floor.get(column), seeds=seeds, difference=True) for column in COLUMNS}
    for column in LEVELS.keys() & floor.keys():
        away = -floor[column] if column == "tow" else floor[column]
        values[column] = Value(LEVELS[column] + away, seeds=seeds)
    return Line("floor", OWN_ROWS["floor"], (), seeds, seeds, values)
