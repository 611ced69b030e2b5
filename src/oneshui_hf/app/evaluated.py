"""The runs next to a run that were computed from it, and the table that compares the evaluated ones, or the methods of a benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OneshuiError
from ..results.aggregate import Group, Line, Row, summarise
from ..results.load import load_benchmark, load_run
from ..results.table_columns import COLUMNS
from ..results.verdict import verdict
from ..runs import CURVES, METRICS, RECORD, Run
from ..stages.compared_runs import runs_for_comparison

IDEALS = {"up": "higher is better", "oracle": "nearer to the oracle is better"}
WITHIN = "within the noise floor"


@dataclass(frozen=True)
class Comparison:
    """A table of methods.

    Attributes:
        title: What was measured.
        columns: Headings; the first is the method's, the last lists the columns that show no more than noise.
        rows: Texts and numbers, None where a number is unknown.
        verdicts: For doing nothing and each method its label and one sentence.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    verdicts: Sequence[tuple[str, str]]


def runs_computed_from(run: Run) -> Iterator[Run]:
    """Yield the runs in the same folder that were computed from this one, oracles included, by their names."""
    for file in sorted(run.path.resolve().parent.glob(f"[!.]*/{RECORD}")):  # without scratch folders of killed processes
        try:
            other = Run.open(file.parent)
        except OneshuiError:  # damaged, or of a later version
            continue
        if run.record.weights is not None and (other.record.parent or {}).get("weights") == run.record.weights:
            yield other


def compare_methods(run: Run, benchmark: str | None) -> list[Comparison]:
    """Return a table for each data set and size of the request; none if nothing was evaluated.

    Args:
        run: The model.
        benchmark: Folder of a benchmark. The evaluated runs next to the model are compared without one.

    Raises:
        UsageError: The benchmark has no rows.
        OneshuiError: A row is damaged.
    """
    rows = _rows_next_to(run) if benchmark is None else [result.row for result in load_benchmark(Path(benchmark))]
    return [_comparison(group) for group in summarise(rows)] if rows else []


def _rows_next_to(run: Run) -> list[Row]:
    """Return the rows of the evaluated runs next to a run, each once. A measured row is preferred to one by definition."""
    evaluated = [other for other in (run, *runs_computed_from(run)) if all((other.path / name).is_file() for name in (METRICS, CURVES))]
    found: dict[tuple[Any, ...], Row] = {}
    for other in evaluated:
        for result in load_run(other, *runs_for_comparison(other)):
            row = result.row
            key = (row["dataset"], row["forget"], row["seed"], row["row"], row["method"] if row["row"] == "method" else "")
            if key not in found or not found[key]["metrics"].get("retain"):
                found[key] = row
    return list(found.values())


def _comparison(group: Group) -> Comparison:
    columns = {name: COLUMNS[name] for name in group.columns}
    heads = [f"{column.heading(group.score)} ({IDEALS.get(column.ideal, f'ideal {column.ideal}')})" for column in columns.values()]
    people = "1 person" if group.forget == 1 else f"{group.forget} people"
    seeds = "1 seed" if len(group.seeds) == 1 else f"{len(group.seeds)} seeds"
    title = f"{group.dataset}: {people} forgotten, {seeds}"
    rows = [_row(line, group, list(columns)) for line in group.lines]
    verdicts = [(line.label, verdict(line, group)) for line in group.lines if line.row in ("original", "method")]
    return Comparison(title, ["method", *heads, WITHIN], rows, verdicts)


def _row(line: Line, group: Group, columns: Sequence[str]) -> list[Any]:
    label = line.label if line.done else f"{line.label} (failed)"
    means = [line.values[name].mean if line.done else None for name in columns]
    numbers = [None if mean is None else round(mean, COLUMNS[name].decimals) for name, mean in zip(columns, means, strict=True)]
    within = [COLUMNS[name].heading(group.score) for name in columns if line.done and line.values[name].within_floor]
    return [f"{label} (collapsed)" if line.collapsed else label, *numbers, ", ".join(within)]
