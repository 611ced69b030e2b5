"""What a benchmark has to do: one job a row of its tables, named by all that its numbers depend on."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import OneshuiError
from ...methods.base import Method
from ...plugins import METHODS, Plugins
from ...runs import ROWS, dump_json, is_sealed, read_object
from ..command_options import EvaluateOptions
from ..evaluate import FORMAT
from ..evaluation.model_cache import Stock
from ..presets import read_preset
from .grid import Cell, Grid, MethodEntry

BASE: tuple[Literal["original", "oracle"], ...] = ("original", "oracle")  # the rows of every cell before the methods'


@dataclass(frozen=True)
class Job:
    """One row: a model of a cell, measured.

    Attributes:
        key: Names the row's file. Another grid that has the same job finds it done.
        cell: Data, recipe, size of the request, seed.
        entry: The method; None for original and oracle.
        row: What kind of row it is.
        values: Of the method's options: the preset's, and those given.
        made_from: What the cell's original is made from.
    """

    key: str
    cell: Cell
    entry: MethodEntry | None
    row: Literal["original", "oracle", "method"]
    values: dict[str, Any]
    made_from: dict[str, Any]

    @property
    def label(self) -> str:
        """What the row is called."""
        return self.entry.label if self.entry else self.row

    @property
    def method(self) -> type[Method[Any]] | None:
        """The method's class."""
        return Plugins(METHODS).load(self.entry.method) if self.entry else None

    def told(self) -> dict[str, Any]:
        """Return what stands at the head of its row."""
        reads = sorted(self.method.needs.apply) if self.method else []
        about = {"dataset": self.cell.dataset, "forget": self.cell.forget, "seed": self.cell.seed}
        return about | {"row": self.row, "method": self.label, "reads": reads}


def jobs_of(grid: Grid, cell: Cell, stock: Stock) -> list[Job]:
    """Return the jobs of a cell. Reads its data, since the key of a job tells what the data is."""
    made_from = stock.original_key(cell.train)
    jobs = [_job(grid, cell, made_from, None, row) for row in BASE]
    return jobs + [_job(grid, cell, made_from, entry, "method") for entry in grid.entries(cell)]


def _job(grid: Grid, cell: Cell, made_from: dict[str, Any], entry: MethodEntry | None, row: Literal["original", "oracle", "method"]) -> Job:
    values = method_values(entry, cell) if entry else {}
    parts = {
        "cell": made_from,
        "dataset": cell.dataset,
        "row": row,
        "method": entry and [entry.label, entry.method, Plugins(METHODS).origin(entry.method)],
        "values": values,
        "evaluate": [FORMAT, measured_by(grid.evaluate)],
    }
    name = f"{cell.dataset}-{cell.forget}-{cell.seed}-{entry.label if entry else row}"
    readable = "".join(letter if letter.isalnum() else "-" for letter in name.lower())
    return Job(f"{readable}-{hashlib.sha256(dump_json(parts)).hexdigest()[:12]}", cell, entry, row, values, made_from)


def measured_by(options: EvaluateOptions) -> dict[str, Any]:
    """Return the options of an evaluation that its numbers depend on."""
    places = ("run", "oracle", "original", "data_dir", "cache_dir")
    return {name: value for name, value in dataclasses.asdict(options).items() if name not in places}


def method_values(entry: MethodEntry, cell: Cell) -> dict[str, Any]:
    """Return the values of a method's options for a cell: those given, over the preset's."""
    method_class: type[Method[Any]] = Plugins(METHODS).load(entry.method)
    preset: dict[str, Any] = {}
    if entry.preset and Path(entry.preset).suffix == ".json":
        preset = dict(read_preset(Path(entry.preset), entry.method, method_class)["values"])
    elif entry.preset:
        preset = method_class.preset(entry.preset, cell.train.dataset, cell.forget)
    return preset | dict(entry.options)


def read_row(output: Path, job: Job) -> dict[str, Any] | None:
    """Return a job's row, or None where it has not been done, or what was written of it is damaged and is to be done again."""
    try:
        row = read_object(output / ROWS / f"{job.key}.json")
    except OneshuiError:
        return None
    return row if is_sealed(row) else None
