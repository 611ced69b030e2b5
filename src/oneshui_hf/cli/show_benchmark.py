"""How a benchmark, its plan and a report are printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .printing import _print, table
from .show_metrics import _number


def benchmark(result: dict[str, Any]) -> None:
    """Print a benchmark's tables and what is left of it, or its plan."""
    if "plan" in result:
        _print_plan(result)
        return
    for found in result["tables"]:
        table([head.replace(" ", "\n", 1) for head in found["columns"]], found["rows"], found["title"])
    _print("Means over seeds. †: no further from doing nothing than the noise floor. The tables in the folder have the intervals, too.")
    _print(f"{result['rows']} rows in {result['output']}/: results.csv, tables.md, tables.tex, costs.csv.")
    if result["missing"]:
        _print(f"{result['missing']} more are for other shards; the tables are complete when the last one has finished.")
    _print(f"Next: oneshui report {result['output']}")


def _print_plan(result: dict[str, Any]) -> None:
    """Print what a benchmark would do, a line a cell and then what it would take."""
    rows = [
        [
            row["dataset"],
            str(row["forget"]),
            str(row["seed"]),
            *(str(row[key]) for key in ("jobs", "done", "models_cached", "models_to_train")),
            _duration(row["seconds"], row["at_least"]),
            _number(row["peak_mb"], 0),
        ]
        for row in result["plan"]
    ]
    columns = ["data set", "people", "seed", "jobs", "done", "models there", "to train", "time", "peak MB"]
    table(columns, rows, f"{result['name']}: {result['jobs']} jobs, {result['done']} done")
    for note in result["notes"]:
        _print(note)
    if result["plan"]:
        _print(f"In all about {_duration(result['seconds'], result['at_least'])} on this machine.")


def _duration(seconds: float | None, at_least: bool) -> str:
    """Return a duration to read; "at least" where some of it is not known."""
    if seconds is None:
        return "-"
    told = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    return f"{told} or more" if at_least else told


def unfinished(result: dict[str, Any]) -> str | None:
    """Return what failed in a benchmark, or cannot be planned."""
    if problems := result.get("problems"):
        return " ".join(problems)
    failed = result.get("failed")
    if not failed:
        return None
    first = failed[0]
    where = f"{first['method']} on {first['dataset']}, {first['forget']} people, seed {first['seed']}"
    return f"{len(failed)} of {result['rows']} jobs failed; the first, {where}: {first['reason']} Try them again with --retry."


def report(result: dict[str, Any]) -> None:
    """Tell where a report lies."""
    _print(f"Report: {result['report']}")
    if figures := result["figures"]:
        _print(f"Figures: {Path(figures[0]).parent} ({len(figures)} SVG files)")
