"""The set-up of a benchmark: its data folders, its output folder, its model cache, and the jobs of a shard."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...cache import Cache
from ...errors import UsageError, did_you_mean
from ...files import LEFTOVER
from ...option_values import expand_home
from ...reporting import Reporter
from ...runs import MANIFEST, read_object, require_writable_place
from ..command_options import BenchmarkOptions
from ..tracking import check_report_to
from .grid import Grid, read_grid

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..evaluation.model_cache import ModelCache
    from .jobs import Job

BENCHMARKS = Path("benchmarks")


def check_benchmark(options: BenchmarkOptions) -> None:
    """Check a grid and the options of its benchmark, before anything heavy is imported.

    Raises:
        UsageError: The grid, an option or the folder is invalid.
    """
    grid = with_data_dirs(read_grid(options.grid), options.data_dir)
    resolve_output_dir(options, grid)
    jobs_of_shard([], options.shard)
    check_report_to(options.report_to)
    if options.check is not None:
        from .check_tables import expected_values

        expected_values(options, grid)


def with_data_dirs(grid: Grid, given: Sequence[str]) -> Grid:
    """Return the grid with the data folders given by `--data-dir NAME=DIR`.

    Raises:
        UsageError: An item is not NAME=DIR, or the grid has no such data set.
    """
    folders = {}
    names = {cell.dataset for cell in grid.cells}
    for word in given:
        # A name may contain an equals sign, too.
        name = next((name for name in sorted(names, key=len, reverse=True) if word.startswith(f"{name}=")), word.partition("=")[0])
        equals, folder = word[len(name) : len(name) + 1], word[len(name) + 1 :]
        if not (equals and folder):
            raise UsageError(
                f"--data-dir takes NAME=DIR here, not '{word}': the grid may have several data sets ({', '.join(sorted(names))})."
            )
        if name not in names:
            raise UsageError(f"The grid has no data set '{name}'.{did_you_mean(name, names)}")
        folders[name] = expand_home(folder)
    cells = (
        dataclasses.replace(cell, train=dataclasses.replace(cell.train, data_dir=folders.get(cell.dataset, cell.train.data_dir)))
        for cell in grid.cells
    )
    return dataclasses.replace(grid, cells=tuple(cells))


def resolve_output_dir(options: BenchmarkOptions, grid: Grid) -> Path:
    """Return the benchmark's folder.

    Raises:
        UsageError: The folder contains other files, or cannot be written.
    """
    output = Path(options.output_dir or BENCHMARKS / grid.name)
    require_writable_place(output, "another folder", "--output-dir")
    # A killed process, or another shard at this moment, may have left a temporary file.
    if output.is_dir() and any(not LEFTOVER.fullmatch(path.name) for path in output.iterdir()):
        if not (output / MANIFEST).is_file():
            raise UsageError(f"{output} contains other files than a benchmark; name another folder with --output-dir.")
        if (name := read_object(output / MANIFEST).get("name")) != grid.name:
            raise UsageError(f"{output} contains benchmark '{name}', not '{grid.name}'; name another folder with --output-dir.")
    return output


def lock_name(output: Path, shard: str | None) -> Path:
    """Return the path that a benchmark locks: its folder, or one path per shard, since shards run at the same time in one folder."""
    return output if shard is None else output.with_name(f"{output.name}.shard-{shard.replace('/', '-of-')}")


def open_model_cache(options: BenchmarkOptions, grid: Grid, output: Path, accelerator: Accelerator, reporter: Reporter) -> ModelCache:
    """Return the benchmark's model cache.

    Raises:
        UsageError: Its folder is a file, or contains other files.
    """
    from ..evaluation.model_cache import ModelCache

    cache = Cache(options.cache_dir or output / "cache")
    cache.entries()  # checks the folder, once; otherwise every job would fail with the same error
    return ModelCache(cache, accelerator, reporter, evaluation=grid.evaluate)


def jobs_of_shard(jobs: Sequence[Job], shard: str | None) -> list[Job]:
    """Return the jobs of shard `I/N`: every N-th job. Shards start at different positions, so that they seldom wait for the same model.

    Raises:
        UsageError: The shard is not I/N.
    """
    if shard is None:
        return list(jobs)
    number, slash, count = shard.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(f"--shard takes I/N, such as 1/4 for the first of four parts, not '{shard}'.")
    selected = list(jobs)[int(number) - 1 :: int(count)]
    first = (int(number) - 1) * len(selected) // int(count)
    return selected[first:] + selected[:first]
