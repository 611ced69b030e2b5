"""How a benchmark, its plan and a report are printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .printing import number, print_line, table


def benchmark(result: dict[str, Any]) -> None:
    """Print the tables of a benchmark and the number of open jobs, or its plan."""
    if "plan" in result:
        _print_plan(result)
        return
    for found in result["tables"]:
        table([head.replace(" ", "\n", 1) for head in found["columns"]], found["rows"], found["title"])
        if found["note"]:
            print_line(found["note"])
    print_line("Means over seeds. †: within the noise floor of doing nothing. The tables in the folder include intervals.")
    print_line(f"{result['rows']} rows in {result['output']}/: results.csv, tables.md, tables.tex, costs.csv.")
    if result["missing"]:
        print_line(f"{result['missing']} rows belong to other shards. The tables are complete when the last shard has finished.")
    print_line(f"Next: oneshui report {result['output']}")


def _print_plan(result: dict[str, Any]) -> None:
    """Print the plan of a benchmark: one line per cell, then the estimated total."""
    rows = [
        [
            row["dataset"],
            str(row["forget"]),
            str(row["seed"]),
            *(str(row[key]) for key in ("jobs", "done", "models_cached", "models_to_train")),
            _duration(row["seconds"], row["at_least"]),
            number(row["peak_mb"], 0),
        ]
        for row in result["plan"]
    ]
    columns = ["data set", "forget identities", "seed", "jobs", "done", "models cached", "to train", "time", "peak MB"]
    table(columns, rows, f"{result['name']}: {result['jobs']} jobs, {result['done']} done")
    for note in result["notes"]:
        print_line(note)
    if result["plan"]:
        print_line(f"Estimated total: {_duration(result['seconds'], result['at_least'])} on this machine.")


def _duration(seconds: float | None, at_least: bool) -> str:
    """Return a readable duration, with "or more" if part of it is unknown."""
    if seconds is None:
        return "-"
    text = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    return f"{text} or more" if at_least else text


def unfinished(result: dict[str, Any]) -> str | None:
    """Return the failure of a benchmark or of its plan, if there is one."""
    if problems := result.get("problems"):
        return " ".join(problems)
    failed = result.get("failed")
    if not failed:
        return None
    first = failed[0]
    where = f"{first['method']} on {first['dataset']}, {first['forget']} forget identities, seed {first['seed']}"
    return f"{len(failed)} of {result['rows']} jobs failed. The first is {where}: {first['reason']} Repeat them with --retry."


def report(result: dict[str, Any]) -> None:
    """Print the path of a report."""
    print_line(f"Report: {result['report']}")
    if figures := result["figures"]:
        print_line(f"Figures: {Path(figures[0]).parent} ({len(figures)} SVG files)")
