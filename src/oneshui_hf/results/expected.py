"""Expected values of a benchmark's tables, with tolerances: a JSON file, and the cells of a benchmark that differ from it.

    {"format": 1, "grid": "demo", "tables": [
      {"dataset": "synthetic", "forget": 4, "seeds": [0, 1], "rows": {"do nothing": {"tow": {"expected": 66.4, "tolerance": 2.1}}}}
    ]}

Rows have the labels of the tables. A column is a key of `table_columns.COLUMNS`, or any other number of `results.csv`, as METRIC or
SET.METRIC: `difference.weights.owner.rank`, `forget.loss`. A value is the mean over the seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import Field

from ..errors import UsageError, did_you_mean
from ..runs import read_object
from ..validation import Count, Schema, Text, check_fields
from .aggregate import Group, Line, Row, row_name, summarise
from .table_columns import COLUMNS
from .tables import named_numbers


class Cell(Schema):
    """One value of a table."""

    expected: float
    tolerance: Annotated[float, Field(ge=0)]


class Table(Schema):
    """The values of a data set and a request size."""

    dataset: Text
    forget: Count
    seeds: Annotated[list[Count], Field(min_length=1)]
    rows: Annotated[dict[Text, dict[Text, Cell]], Field(min_length=1)]


class ExpectedTables(Schema):
    """The contents of the file."""

    format: Literal[1]
    grid: Text
    tables: Annotated[list[Table], Field(min_length=1)]


def read_expected(file: Path, grid: str) -> ExpectedTables:
    """Read a file of expected values.

    Args:
        file: The file.
        grid: The name of the grid whose benchmark is checked.

    Raises:
        UsageError: The file does not exist, is of another grid, or names a column that tables do not have.
        OneshuiError: It is no JSON, or a field is missing or invalid.
    """
    if not file.is_file():
        raise UsageError(f"There is no file {file}; --check takes a JSON file of expected values, such as docs/results/expected/demo.json.")
    raw = read_object(file)
    check_fields(ExpectedTables, raw, file)
    found = ExpectedTables.model_validate(raw)
    if found.grid != grid:
        raise UsageError(f"{file} has the expected values of grid '{found.grid}', not of '{grid}'.")
    for column in (column for table in found.tables for row in table.rows.values() for column in row):
        if column not in COLUMNS and "." not in column:
            raise UsageError(f"{file}: tables have no column '{column}'.{did_you_mean(column, COLUMNS)}")
    return found


def compare(expected: ExpectedTables, rows: Sequence[Row]) -> dict[str, Any]:
    """Compare the tables of a benchmark's rows with their expected values.

    Returns:
        `cells`, the number of compared cells; `off`, those that differ by more than their tolerance or are unknown, each with `dataset`,
        `forget`, `row`, `column`, `expected`, `tolerance` and `found`; `missing`, the rows that cannot be compared, each with `dataset`,
        `forget`, `row` (None for a whole table) and `reason`.
    """
    by_key: dict[tuple[str, int], Group] = {(group.dataset, group.forget): group for group in summarise(rows)}
    off: list[dict[str, Any]] = []
    missing: list[dict[str, Any]] = []
    cells = 0
    for table in expected.tables:
        place = {"dataset": table.dataset, "forget": table.forget}
        group = by_key.get((table.dataset, table.forget))
        if group is None:
            missing.append(place | {"row": None, "reason": "the benchmark has no such table"})
            continue
        lines = {line.label: line for line in group.lines}
        for label, row in table.rows.items():
            if reason := _why_missing(lines.get(label), group.seeds, tuple(table.seeds)):
                missing.append(place | {"row": label, "reason": reason})
            else:
                cells += len(row)
                models = [named_numbers(each["metrics"]) for each in rows if _is_of(each, table, label)]
                off += [place | {"row": label, **cell} for cell in _cells_off(row, lines[label], models)]
    return {"cells": cells, "off": off, "missing": missing}


def _why_missing(line: Line | None, found: tuple[int, ...], seeds: tuple[int, ...]) -> str | None:
    if line is None:
        return "the table has no such row"
    if found != tuple(sorted(seeds)):
        return f"measured for {_seeds(found)}, expected for {_seeds(seeds)}"
    if line.done < len(seeds):
        return f"done for {line.done} of {len(seeds)} seeds"
    return None


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _is_of(row: Row, table: Table, label: str) -> bool:
    return row["state"] == "done" and (row["dataset"], row["forget"], row_name(row)) == (table.dataset, table.forget, label)


def _cells_off(row: dict[str, Cell], line: Line, models: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for column, cell in row.items():
        found = line.values[column].mean if column in COLUMNS else _mean([numbers.get(column) for numbers in models])
        if found is None or not abs(found - cell.expected) <= cell.tolerance:  # NaN is never within
            yield {"column": column, "expected": cell.expected, "tolerance": cell.tolerance, "found": found}


def _mean(values: Sequence[Any]) -> float | None:
    """Return the mean; None if a value is unknown."""
    return None if not values or None in values else fmean(values)
