"""The check of a benchmark's tables against expected values, without running anything where all rows exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import OneshuiError, UsageError
from ...results.aggregate import summarise
from ...results.expected import ExpectedTables, compare, read_expected
from ...results.tables import terminal_tables
from ...runs import MANIFEST, ROWS, read_checked, read_object
from ..command_options import BenchmarkOptions
from .grid import Grid


def expected_values(options: BenchmarkOptions, grid: Grid) -> ExpectedTables | None:
    """Return the contents of the file that `--check` names; None without it.

    Raises:
        UsageError: The file is missing or of another grid, or `--check` is given with an option that leaves rows out.
        OneshuiError: It is damaged.
    """
    if options.check is None:
        return None
    for flag, is_given in (("--dry-run", options.dry_run), ("--shard", options.shard is not None)):
        if is_given:
            raise UsageError(f"--check compares a complete benchmark, so it cannot be given with {flag}; leave one of them out.")
    return read_expected(Path(options.check), grid.name)


def check_tables(output: Path, expected: ExpectedTables) -> dict[str, Any]:
    """Return the comparison of a benchmark's rows with the expected values, see `results.expected.compare`."""
    return compare(expected, _stored_rows(output)[0])


def check_complete_benchmark(output: Path, expected: ExpectedTables) -> dict[str, Any] | None:
    """Return what `benchmark` returns, with `check`; None if a row is missing or failed, so that the benchmark has to run first.

    The rows are those of the last grid of this name that was run; `benchmark` without `--check` runs a changed one.
    """
    rows, missing = _stored_rows(output)
    if not rows or missing or any(row["state"] == "failed" for row in rows):
        return None
    check = compare(expected, rows)
    if check["missing"]:
        return None
    return {
        "output": str(output),
        "tables": terminal_tables(summarise(rows)),
        "rows": len(rows),
        "failed": [],
        "missing": 0,
        "check": check,
    }


def _stored_rows(output: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of a benchmark's last grid, and the number of those that do not exist or are damaged."""
    if not (output / MANIFEST).is_file():
        return [], 0
    listed = read_object(output / MANIFEST).get("rows")
    rows, missing = [], 0
    for name in listed if isinstance(listed, list) else []:
        try:
            rows.append(read_checked(output / ROWS / f"{name}.json"))
        except OneshuiError:
            missing += 1
    return rows, missing
