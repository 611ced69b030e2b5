"""The jobs of a benchmark: one per row of its tables. A job's key covers everything its numbers depend on."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import OneshuiError
from ...methods.base import Method
from ...options import original_names
from ...plugins import METHODS, Plugins
from ...runs import ROWS, dump_json, read_checked
from ..command_options import EvaluateOptions
from ..evaluate import FORMAT
from ..evaluation.model_cache import ModelCache
from ..presets import resolve_preset
from .grid import Cell, Grid, MethodEntry

BASELINES: tuple[Literal["original", "oracle"], ...] = ("original", "oracle")  # the first rows of every cell
LOCATIONS = ("run", "oracle", "original", "data_dir", "cache_dir")  # evaluation options that do not affect the numbers


@dataclass(frozen=True)
class Job:
    """One row of the tables: the evaluation of one model of a cell.

    Attributes:
        key: The name of the row's file. Grids that share a job share its row.
        cell: Data, recipe, size of the request, seed.
        entry: The method; None for original and oracle.
        row: The kind of row.
        values: The values of the method's options: those of the grid, and those of the preset for the others.
        original_key: The cache key of the cell's original model.
    """

    key: str
    cell: Cell
    entry: MethodEntry | None
    row: Literal["original", "oracle", "method"]
    values: dict[str, Any]
    original_key: dict[str, Any]

    @property
    def label(self) -> str:
        """The name of the row."""
        return self.entry.label if self.entry else self.row

    @property
    def method(self) -> type[Method[Any]] | None:
        """The method's class."""
        return Plugins(METHODS).load(self.entry.method) if self.entry else None

    def header(self) -> dict[str, Any]:
        """Return the fields of its row that describe the job."""
        reads = sorted(self.method.needs.apply) if self.method else []
        cell = {"dataset": self.cell.dataset, "forget": self.cell.forget, "seed": self.cell.seed}
        return cell | {"row": self.row, "method": self.label, "reads": reads}


def cell_jobs(grid: Grid, cell: Cell, model_cache: ModelCache) -> list[Job]:
    """Return the jobs of a cell. Reads its data, because a job's key covers the data."""
    original_key = model_cache.original_key(cell.train)
    jobs = [_make_job(grid, cell, original_key, None, row) for row in BASELINES]
    return jobs + [_make_job(grid, cell, original_key, entry, "method") for entry in grid.entries(cell)]


def _make_job(
    grid: Grid, cell: Cell, original_key: dict[str, Any], entry: MethodEntry | None, row: Literal["original", "oracle", "method"]
) -> Job:
    values = method_values(entry, cell) if entry else {}
    parts = {
        "cell": original_key,
        "dataset": cell.dataset,
        "row": row,
        "method": entry and [entry.label, entry.method, Plugins(METHODS).origin(entry.method)],
        "values": original_names(Plugins(METHODS).load(entry.method).options, values) if entry else values,
        "evaluate": [FORMAT, original_names(EvaluateOptions, evaluation_settings(grid.evaluate))],
    }
    name = f"{cell.dataset}-{cell.forget}-{cell.seed}-{entry.label if entry else row}"
    readable = "".join(letter if letter.isalnum() else "-" for letter in name.lower())
    return Job(f"{readable}-{hashlib.sha256(dump_json(parts)).hexdigest()[:12]}", cell, entry, row, values, original_key)


def evaluation_settings(options: EvaluateOptions) -> dict[str, Any]:
    """Return the options of an evaluation that affect its numbers."""
    return {name: value for name, value in dataclasses.asdict(options).items() if name not in LOCATIONS}


def method_values(entry: MethodEntry, cell: Cell) -> dict[str, Any]:
    """Return the values of a method's options for a cell. Values of the grid override those of the preset."""
    method_class: type[Method[Any]] = Plugins(METHODS).load(entry.method)
    preset = resolve_preset(entry.preset, entry.method, method_class, cell.train.dataset, cell.forget)
    return preset | dict(entry.options)


def read_row(output: Path, job: Job) -> dict[str, Any] | None:
    """Return a job's row; None if the job has not run, or if its file is damaged, so that it runs again."""
    try:
        return read_checked(output / ROWS / f"{job.key}.json")
    except OneshuiError:
        return None
