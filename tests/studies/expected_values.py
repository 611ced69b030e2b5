"""Write the file of expected values of `oneshui benchmark --check` from a benchmark's results.csv.

    python tests/studies/expected_values.py docs/results/faces/results.csv --grid faces --rename "forget-keys=forget-keys quantile" \
        > docs/results/expected/faces.json

`--number NAME=TOLERANCE` adds a number that is in no column of the tables, such as `difference.weights.owner.rank`. `--tolerance
COLUMN=TOLERANCE` is for a benchmark without reference models, which measures no noise floor.

The expected value of a cell is the mean over seeds. Its tolerance is the noise floor of the table, which is the difference of two oracles
of different seeds: another machine rounds differently, and training amplifies that as it does another seed. It is at least what tables
print.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

COLUMNS = {  # where the value of a column is found in results.csv; SCORE is map or accuracy
    **{name: (name, "SCORE") for name in ("retain", "forget", "test")},
    **{name: ("", name) for name in ("tow", "gap_closure")},
    "attack": ("", "attack.strongest.auc_either_way"),
}
FLOORS = {  # where its noise floor is found, and the value without any difference
    **{name: (name, "noise_floor", 0.0) for name in ("retain", "forget", "test")},
    "tow": ("", "noise_floor.tow", 100.0),
    "gap_closure": ("", "noise_floor.gap_closure", 0.0),
    "attack": ("", "noise_floor.auc_either_way", 0.5),
}
LEAST = {"gap_closure": 0.01, "attack": 0.01}  # of a tolerance; 0.1 points for scores

Numbers = Mapping[tuple[int, str, str, str], float]  # by seed, method, set and metric


def expected_tables(
    files: Iterable[Path],
    grid: str,
    renamed: Mapping[str, str] = MappingProxyType({}),
    further: Mapping[str, float] = MappingProxyType({}),
    without_floor: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the contents of the file of expected values.

    Args:
        files: The files `results.csv`.
        grid: Name of the grid.
        renamed: The grid's present label of a row, by its label in the files.
        further: Tolerances of numbers that are in no column of the tables, by name.
        without_floor: Tolerances of columns of a benchmark without reference models, which has no noise floor.
    """
    tables: dict[tuple[str, int], dict[tuple[int, str, str, str], float]] = {}
    for file in files:
        with file.open(encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                if row["value"]:
                    key = int(row["seed"]), row["method"], row["set"], row["metric"]
                    tables.setdefault((row["dataset"], int(row["forget"])), {})[key] = float(row["value"])
    listed = [
        {"dataset": place[0], "forget": place[1], **_table(numbers, renamed, further, without_floor)}
        for place, numbers in sorted(tables.items())
    ]
    return {"format": 1, "grid": grid, "tables": listed}


def _table(
    numbers: Numbers, renamed: Mapping[str, str], further: Mapping[str, float], without_floor: Mapping[str, float]
) -> dict[str, Any]:
    seeds = sorted({seed for seed, *_ in numbers})
    methods = sorted({method for _, method, *_ in numbers})
    score = "map" if any(metric == "map" for *_, metric in numbers) else "accuracy"
    columns = {name: (of_set, metric.replace("SCORE", score)) for name, (of_set, metric) in COLUMNS.items()}
    floors = {column: _floor(numbers, seeds, methods, column) for column in COLUMNS}
    tolerances = {column: max(floor, LEAST.get(column, 0.1)) for column, floor in floors.items() if floor is not None}
    tolerances = {column: float(f"{tolerance:.3g}") for column, tolerance in (without_floor | tolerances).items()} | further
    rows = {}
    for method in methods:
        cells = {}
        for name, tolerance in tolerances.items():
            values = [numbers.get((seed, method, *columns.get(name, ("", name)))) for seed in seeds]
            known = [value for value in values if value is not None]
            if len(known) == len(seeds):
                cells[name] = {"expected": float(f"{fmean(known):.6g}"), "tolerance": tolerance}
        if cells:
            rows[renamed.get(method, method)] = cells
    return {"seeds": seeds, "rows": rows}


def _floor(numbers: Numbers, seeds: Iterable[int], methods: Iterable[str], column: str) -> float | None:
    """Return the noise floor of a column, the mean over seeds; None where a seed has none."""
    of_set, metric, level = FLOORS[column]
    methods = list(methods)
    found = [next((numbers[key] for method in methods if (key := (seed, method, of_set, metric)) in numbers), None) for seed in seeds]
    known = [abs(value - level) for value in found if value is not None]
    return fmean(known) if len(known) == len(found) else None


def _tolerances(pairs: Iterable[str]) -> dict[str, float]:
    return {name: float(tolerance) for name, tolerance in (pair.split("=", 1) for pair in pairs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--grid", required=True)
    parser.add_argument("--rename", action="append", default=[], help="LABEL=LABEL: the grid's present name of a row")
    parser.add_argument("--number", action="append", default=[], help="NAME=TOLERANCE: a number that is in no column of the tables")
    parser.add_argument("--tolerance", action="append", default=[], help="COLUMN=TOLERANCE: of a benchmark without a noise floor")
    given = parser.parse_args()
    renamed = dict(pair.split("=", 1) for pair in given.rename)
    further, without_floor = (_tolerances(pairs) for pairs in (given.number, given.tolerance))
    json.dump(expected_tables(given.results, given.grid, renamed, further, without_floor), sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
