"""The benchmark: data sets x request sizes x seeds x methods, from one YAML file, to tables.

oneshui benchmark demo
oneshui benchmark grid.yaml --data-dir celeba=DIR --dry-run
oneshui benchmark grid.yaml --shard 1/4            # on four machines that share the folder
accelerate launch -m oneshui_hf benchmark ...

OUTPUT/
  rows/<job>.json      what was measured, or why it failed; a job that has its row is done
  results.csv          one number a line, with its interval
  tables.md, .tex      means over seeds, as in a paper
  costs.csv            seconds and memory; apart, since they differ from run to run
  benchmark.json       which rows belong to the grid
  cache/               models, oracles, preparations; see `oneshui cache`

A benchmark may be killed at any moment and goes on with the same command, to the same tables. A job that fails is recorded, and the
others go on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..errors import OneshuiError, is_disk_full
from ..reporting import SILENT, PrefixedReporter, Reporter
from ..results.aggregate import summarise
from ..results.tables import costs_csv, glance, latex, markdown, tidy
from ..runs import CURVES, MANIFEST, ROWS, read_object, sealed, write_bytes, write_json
from .benchmarking.grid import Grid, read_grid
from .benchmarking.jobs import Job, jobs_of, read_row
from .benchmarking.setup import claim_output, open_stock, place_data, share
from .command_options import BenchmarkOptions
from .distributed import agree, make_accelerator, on_main
from .evaluate import evaluate
from .evaluation.model_cache import Forgotten, Stock


def benchmark(options: BenchmarkOptions, accelerator: Accelerator | None = None, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Do what is left of a grid, and write its tables.

    Returns:
        `output`, the folder; `tables`, the means at a glance; `rows`, how many there are; `failed`, those that did not work, with the
        reason; `missing`, how many other shards have still to do.

    Raises:
        UsageError: The grid, an option or the folder is wrong.
        OneshuiError: A data set cannot be read.
    """
    grid = place_data(read_grid(options.grid), options.data_dir)
    output = claim_output(options, grid)
    share([], options.shard)  # a mistake in it is told before anything is read or written
    stock = open_stock(options, grid, output, accelerator or make_accelerator(), reporter)
    accelerator = stock.accelerator
    plan = [job for cell in grid.cells for job in jobs_of(grid, cell, stock)]
    on_main(accelerator, lambda: write_json(output / MANIFEST, {"name": grid.name, "rows": [job.key for job in plan]}))
    mine = share(plan, options.shard)
    for job in reporter.track(mine, f"Benchmark {grid.name}"):
        if agree(accelerator, _is_done(output, job, options.retry)):
            continue
        name = f"{job.cell.dataset}, {job.cell.forget} people, seed {job.cell.seed}, {job.label}"
        reporter.info(f"{name}.")
        row = job.told() | _attempt(job, grid, stock, options, PrefixedReporter(reporter, name))
        on_main(accelerator, lambda: write_json(output / ROWS / f"{job.key}.json", sealed(row)))  # noqa: B023
    on_main(accelerator, lambda: write_tables(output, plan))
    rows = _rows(output, plan)
    failed = [{name: row[name] for name in ("dataset", "forget", "seed", "method", "reason")} for row in rows if row["state"] == "failed"]
    tables = glance(summarise(rows))
    return {"output": str(output), "tables": tables, "rows": len(rows), "failed": failed, "missing": len(plan) - len(rows)}


def _is_done(output: Path, job: Job, retry: bool) -> bool:
    row = read_row(output, job)
    return row is not None and not (retry and row["state"] == "failed")


def _attempt(job: Job, grid: Grid, stock: Stock, options: BenchmarkOptions, reporter: Reporter) -> dict[str, Any]:
    """Return the rest of a job's row: what was measured, or why nothing was."""
    empty = {"metrics": None, "curves": None, "cost": None}
    try:
        return {"state": "done", "reason": None, **do(job, grid, stock, options, reporter)}
    except OneshuiError as error:
        reason = str(error)
    except Exception as error:  # whatever a method raises, the others go on
        if is_disk_full(error):
            raise
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    reporter.warn(f"failed: {reason}")
    return {"state": "failed", "reason": reason, **empty}


def do(job: Job, grid: Grid, stock: Stock, options: BenchmarkOptions, reporter: Reporter) -> dict[str, Any]:
    """Make what a job needs and measure its model."""
    stock = dataclasses.replace(stock, data_dir=job.cell.train.data_dir, reporter=reporter)
    original = stock.original(job.cell.train, job.made_from)
    oracle = stock.oracle(original, original.record.seed)
    if job.entry is None:
        run, cost = original if job.row == "original" else oracle, None
    else:
        forgotten = stock.forget(original, job.entry.method, job.values, job.cell.seed)
        run, cost = forgotten.run, cost_of(forgotten)
    measured = dataclasses.replace(
        grid.evaluate,
        original=str(original.path),
        oracle=str(oracle.path),
        data_dir=job.cell.train.data_dir,
        cache_dir=str(stock.cache.root),
    )
    metrics = evaluate(run, measured, stock.accelerator, stock.reporter)
    curves = read_object(run.path / CURVES)
    if job.entry and not options.keep_models:
        for other in stock.oracles(original, grid.evaluate.references, besides=oracle):
            stock.let_go(stock.reference(run, other))
        stock.let_go(run)
    return {"metrics": metrics, "curves": curves, "cost": cost}


def cost_of(forgotten: Forgotten) -> dict[str, Any]:
    """Return what preparing and applying a method took: seconds, peak memory and what is kept, in MB."""
    report = forgotten.run.record.report
    cost = {"prepare_s": None, "prepare_mb": None, "apply_s": report["seconds"], "apply_mb": report["peak_mb"], "kept_mb": None}
    if forgotten.artefact:
        prepared = read_object(forgotten.artefact / "artefact.json")["report"]
        size = sum(file.stat().st_size for file in forgotten.artefact.iterdir())
        cost |= {"prepare_s": prepared["seconds"], "prepare_mb": prepared["peak_mb"], "kept_mb": round(size / 1e6, 1)}
    return cost


def write_tables(output: Path, plan: Sequence[Job]) -> None:
    """Write the tables of what there is; one shard after the other, so that the last one finds all rows."""
    from filelock import FileLock

    with FileLock(str(output / ".lock")):
        rows = _rows(output, plan)
        groups = summarise(rows)
        files = {"results.csv": tidy(rows), "tables.md": markdown(groups), "tables.tex": latex(groups), "costs.csv": costs_csv(rows)}
        for name, text in files.items():
            write_bytes(output / name, text.encode())


def _rows(output: Path, plan: Sequence[Job]) -> list[dict[str, Any]]:
    found = [read_row(output, job) for job in plan]
    return [row for row in found if row is not None]
