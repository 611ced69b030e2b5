"""The set-up of a benchmark: its data, its folder, its models, and which jobs a shard does."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from ...cache import Cache
from ...errors import UsageError, did_you_mean
from ...reporting import Reporter
from ...runs import MANIFEST, read_object
from ..command_options import BenchmarkOptions
from ..evaluation.model_cache import Stock
from .grid import Grid
from .jobs import Job

BENCHMARKS = Path("benchmarks")


def place_data(grid: Grid, given: Sequence[str]) -> Grid:
    """Return the grid with the data where `--data-dir NAME=DIR` says.

    Raises:
        UsageError: One is no NAME=DIR, or the grid has no such data set.
    """
    folders = {}
    names = {cell.dataset for cell in grid.cells}
    for word in given:
        name, equals, folder = word.partition("=")
        if not (equals and folder):
            raise UsageError(
                f"--data-dir takes NAME=DIR here, not '{word}': the grid may have several data sets ({', '.join(sorted(names))})."
            )
        if name not in names:
            raise UsageError(f"The grid has no data set '{name}'.{did_you_mean(name, names)}")
        folders[name] = folder
    cells = (
        dataclasses.replace(cell, train=dataclasses.replace(cell.train, data_dir=folders.get(cell.dataset, cell.train.data_dir)))
        for cell in grid.cells
    )
    return dataclasses.replace(grid, cells=tuple(cells))


def claim_output(options: BenchmarkOptions, grid: Grid) -> Path:
    """Return the benchmark's folder.

    Raises:
        UsageError: Something else is there, or it cannot be written.
    """
    output = Path(options.output_dir or BENCHMARKS / grid.name)
    place = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UsageError(f"{output} cannot be written there; name another folder with --output-dir.")
    # What a killed process, or another shard at this moment, was writing the manifest to is no other thing.
    if output.is_dir() and any(not path.name.startswith(f".{MANIFEST}.") for path in output.iterdir()):
        if not (output / MANIFEST).is_file():
            raise UsageError(f"{output} holds other things than a benchmark; name another folder with --output-dir.")
        if (name := read_object(output / MANIFEST).get("name")) != grid.name:
            raise UsageError(f"{output} holds benchmark '{name}', not '{grid.name}'; name another folder with --output-dir.")
    return output


def open_stock(options: BenchmarkOptions, grid: Grid, output: Path, accelerator: Accelerator, reporter: Reporter) -> Stock:
    """Return the benchmark's models.

    Raises:
        UsageError: The folder for them is a file, or holds other things.
    """
    cache = Cache(options.cache_dir or output / "cache")
    cache.entries()  # which looks at the folder; otherwise every job would fail by it
    return Stock(cache, accelerator, reporter, measured=grid.evaluate)


def share(plan: Sequence[Job], shard: str | None) -> list[Job]:
    """Return the jobs of a shard, `I/N`: every N-th, each shard beginning elsewhere, so that they seldom wait for the same model.

    Raises:
        UsageError: It is no I/N.
    """
    if shard is None:
        return list(plan)
    number, slash, count = shard.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(f"--shard takes I/N, such as 1/4 for the first of four parts, not '{shard}'.")
    mine = list(plan)[int(number) - 1 :: int(count)]
    first = (int(number) - 1) * len(mine) // int(count)
    return mine[first:] + mine[:first]
