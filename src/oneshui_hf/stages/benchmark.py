"""The benchmark: data sets x request sizes x seeds x methods, read from one YAML file, measured and written as tables.

oneshui benchmark demo
oneshui benchmark grid.yaml --data-dir celeba=DIR --dry-run
oneshui benchmark demo --check docs/results/expected/demo.json
oneshui benchmark grid.yaml --shard 1/4            # on four machines that share the folder
accelerate launch -m oneshui_hf benchmark ...

OUTPUT/
  rows/<job>.json      the results of a job, or why it failed; a job with a row is done
  results.csv          one number per line, with its interval
  tables.md, .tex      means over seeds, as in a paper
  costs.csv            seconds and memory; in their own file, because they differ from run to run
  benchmark.json       the list of rows that belong to the grid
  cache/               models, oracles, artefacts; see `oneshui cache`

A benchmark can be killed at any time; the same command resumes it and gives the same tables. A job that fails is recorded, and the others
continue.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..errors import OneshuiError, is_disk_full
from ..files import clear_leftovers, write_bytes
from ..processes import broadcast_from_main, locked_output, on_main
from ..public_names import METHOD_NAME
from ..reporting import SILENT, PrefixedReporter, Reporter
from ..results.aggregate import summarise
from ..results.tables import costs_csv, latex, markdown, terminal_tables, tidy_csv
from ..runs import CURVES, MANIFEST, ROWS, read_checked, read_object, with_checksum, write_json
from ..sets import EVALUATED
from .benchmarking.check_tables import check_complete_benchmark, check_tables, expected_values
from .benchmarking.grid import Grid, read_grid
from .benchmarking.jobs import Job, cell_jobs, read_row
from .benchmarking.setup import jobs_of_shard, lock_name, open_model_cache, resolve_output_dir, with_data_dirs
from .command_options import BenchmarkOptions
from .distributed import make_accelerator
from .evaluate import evaluate
from .evaluation.model_cache import ModelCache, UnlearningResult
from .tracking import tracked


def benchmark(options: BenchmarkOptions, accelerator: Accelerator | None = None, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Run the remaining jobs of a grid, and write its tables.

    Returns:
        `output`, the folder; `tables`, the means at a glance; `rows`, the number of rows; `failed`, the failed jobs, each with the reason;
        `missing`, the number of jobs that other shards still have to run; with `check`, `check`, see `results.expected.compare`.

    Raises:
        UsageError: The grid, an option or the folder is invalid.
        OneshuiError: A data set cannot be read, or another process is running the same jobs in the same folder.
    """
    grid = with_data_dirs(read_grid(options.grid), options.data_dir)
    output = resolve_output_dir(options, grid)
    jobs_of_shard([], options.shard)  # an error in --shard is raised before anything is read or written
    expected = expected_values(options, grid)
    if expected and (checked := check_complete_benchmark(output, expected)):
        return checked
    accelerator = accelerator or make_accelerator()
    with locked_output(lock_name(output, options.shard), accelerator, flag="--output-dir"):
        on_main(accelerator, lambda: resolve_output_dir(options, grid))  # another process may have written the folder meanwhile
        with tracked(options.report_to, output, {"cells": len(grid.cells)}, accelerator, reporter) as tracking:
            result = _run(grid, output, options, accelerator, reporter, tracking)
            return result | {"check": check_tables(output, expected)} if expected else result


def _run(
    grid: Grid, output: Path, options: BenchmarkOptions, accelerator: Accelerator, reporter: Reporter, tracking: Reporter
) -> dict[str, Any]:
    on_main(accelerator, lambda: [clear_leftovers(folder) for folder in (output, output / ROWS)])
    model_cache = open_model_cache(options, grid, output, accelerator, reporter)
    jobs = [job for cell in grid.cells for job in cell_jobs(grid, cell, model_cache)]
    on_main(accelerator, lambda: write_json(output / MANIFEST, {"name": grid.name, "rows": [job.key for job in jobs]}))
    for number, job in enumerate(reporter.track(jobs_of_shard(jobs, options.shard), f"Benchmark {grid.name}"), 1):
        if broadcast_from_main(accelerator, _is_done(output, job, options.retry)):
            continue
        name = f"{job.cell.dataset}, {job.cell.forget} forget identities, seed {job.cell.seed}, {job.label}"
        reporter.info(f"{name}.")
        row = job.header() | _results_or_failure(job, grid, model_cache, options, PrefixedReporter(reporter, name))
        on_main(accelerator, lambda: write_json(output / ROWS / f"{job.key}.json", with_checksum(row), private=True))  # noqa: B023
        tracking.metrics(_tracked_numbers(job, row), number)
    on_main(accelerator, lambda: write_tables(output, jobs))
    rows = _read_rows(output, jobs)
    failed = [{name: row[name] for name in ("dataset", "forget", "seed", "method", "reason")} for row in rows if row["state"] == "failed"]
    tables = terminal_tables(summarise(rows))
    return {"output": str(output), "tables": tables, "rows": len(rows), "failed": failed, "missing": len(jobs) - len(rows)}


def _tracked_numbers(job: Job, row: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a row for trackers: the scores of each set, and the comparison with the oracle.

    They are named by the method, not by its label in the grid, which is free text.
    """
    name, found = job.entry.method if job.entry else job.row, row["metrics"] or {}
    numbers = {key: found.get(key) for key in ("tow", "gap_closure")}
    for evaluated in EVALUATED:
        numbers |= {f"{evaluated}_{key}": found.get(evaluated, {}).get(key) for key in ("map", "accuracy", "loss")}
    known = {f"{name}/{key}": value for key, value in numbers.items() if value is not None}
    return {"benchmark/failed": float(row["state"] == "failed"), **(known if METHOD_NAME.fullmatch(name) else {})}


def _is_done(output: Path, job: Job, retry: bool) -> bool:
    row = read_row(output, job)
    return row is not None and not (retry and row["state"] == "failed")


def _results_or_failure(job: Job, grid: Grid, model_cache: ModelCache, options: BenchmarkOptions, reporter: Reporter) -> dict[str, Any]:
    """Run a job and return the rest of its row: the results, or the reason of the failure."""
    empty = {"metrics": None, "curves": None, "cost": None}
    try:
        return {"state": "done", "reason": None, **run_job(job, grid, model_cache, options, reporter)}
    except OneshuiError as error:
        reason = str(error)
    except Exception as error:  # a method may raise anything; the other jobs continue
        if is_disk_full(error):
            raise
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    reporter.warn(f"failed: {reason}")
    return {"state": "failed", "reason": reason, **empty}


def run_job(job: Job, grid: Grid, model_cache: ModelCache, options: BenchmarkOptions, reporter: Reporter) -> dict[str, Any]:
    """Make the models that a job needs, evaluate its model, and return `metrics`, `curves` and `cost`."""
    model_cache = dataclasses.replace(model_cache, data_dir=job.cell.train.data_dir, reporter=reporter)
    original = model_cache.original(job.cell.train, job.original_key)
    oracle = model_cache.oracle(original, original.record.seed)
    if job.entry is None:
        run, cost = original if job.row == "original" else oracle, None
    else:
        result = model_cache.unlearned(original, job.entry.method, job.values, job.cell.seed)
        run, cost = result.run, unlearning_cost(result)
    evaluation = dataclasses.replace(
        grid.evaluate,
        original=str(original.path),
        oracle=str(oracle.path),
        data_dir=job.cell.train.data_dir,
        cache_dir=str(model_cache.cache.root),
    )
    oracles = model_cache.oracles(original, grid.evaluate.references, other_than=oracle)
    references = [model_cache.reference(run, other) for other in oracles]
    with model_cache.in_use(run):  # another benchmark may evaluate the same model
        metrics = evaluate(run, evaluation, model_cache.accelerator, model_cache.reporter)
        curves = read_checked(run.path / CURVES)
        if job.entry and not options.keep_models:
            for other in (*references, run):
                model_cache.evict_weights(other)
    return {"metrics": metrics, "curves": curves, "cost": cost}


def unlearning_cost(result: UnlearningResult) -> dict[str, Any]:
    """Return the cost of preparing and applying a method: seconds, peak memory in MB, and the size of the artefact in MB."""
    report = result.run.record.report
    cost = {"prepare_s": None, "prepare_mb": None, "apply_s": report["seconds"], "apply_mb": report["peak_mb"], "kept_mb": None}
    if result.artefact:
        prepared = read_object(result.artefact / "artefact.json")["report"]
        size = sum(file.stat().st_size for file in result.artefact.iterdir())
        cost |= {"prepare_s": prepared["seconds"], "prepare_mb": prepared["peak_mb"], "kept_mb": round(size / 1e6, 1)}
    return cost


def write_tables(output: Path, jobs: Sequence[Job]) -> None:
    """Write the tables of the existing rows. Shards take turns, so that the last one includes all rows."""
    from filelock import FileLock

    with FileLock(str(output / ".lock")):
        rows = _read_rows(output, jobs)
        groups = summarise(rows)
        files = {"results.csv": tidy_csv(rows), "tables.md": markdown(groups), "tables.tex": latex(groups), "costs.csv": costs_csv(rows)}
        for name, text in files.items():
            write_bytes(output / name, text.encode())


def _read_rows(output: Path, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    rows = [read_row(output, job) for job in jobs]
    return [row for row in rows if row is not None]
