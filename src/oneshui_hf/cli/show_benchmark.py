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
    if "check" in result:
        _print_check(result["check"])
    print_line(f"Next: oneshui report {result['output']}")


def _print_check(check: dict[str, Any]) -> None:
    """Print the cells that are off, and the rows that are missing."""
    names = ("dataset", "forget", "row", "column", "expected", "tolerance", "found")
    if check["off"]:
        rows = [["-" if cell[name] is None else _cell_text(cell[name]) for name in names] for cell in check["off"]]
        heads = ["data set", "forget identities", *names[2:]]
        table(heads, rows, "Cells that differ by more than their tolerance", text=(0, 2, 3))
    for row in check["missing"]:
        print_line(f"Missing: {row['dataset']}, {row['forget']} forget identities, {row['row'] or 'all rows'}: {row['reason']}.")
    if not check["off"] and not check["missing"]:
        print_line(f"Check: all {check['cells']} cells are within their tolerance.")


def _cell_text(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


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
        return _cells_off(result.get("check"))
    first = failed[0]
    where = f"{first['method']} on {first['dataset']}, {first['forget']} forget identities, seed {first['seed']}"
    return f"{len(failed)} of {result['rows']} jobs failed. The first is {where}: {first['reason']} Repeat them with --retry."


def _cells_off(check: dict[str, Any] | None) -> str | None:
    """Return how many cells are off or missing; None if there are none."""
    if not check or not (check["off"] or check["missing"]):
        return None
    off = f"{len(check['off'])} of {check['cells']} cells differ from their expected values by more than their tolerance"
    missing = len(check["missing"])
    return f"{off}, and {missing} {'row is' if missing == 1 else 'rows are'} missing." if missing else f"{off}."


def report(result: dict[str, Any]) -> None:
    """Print the path of a report."""
    print_line(f"Report: {result['report']}")
    if figures := result["figures"]:
        print_line(f"Figures: {Path(figures[0]).parent} ({len(figures)} SVG files)")
