"""What docs/appendix/benchmark.md states about the present definition of mAP follows from the published files."""

from __future__ import annotations

import csv
import re
from math import prod
from pathlib import Path
from statistics import fmean, stdev

import pytest
from scipy import stats

RESULTS = Path(__file__).parents[2] / "docs" / "results"
SEEDS = (0, 1, 2)
TABLES = (("folder-5", "faces", 5, 33), ("folder-10", "faces", 10, 37), ("folder-10, paper's regime", "paper-regime", 10, 37))


def read(name: str, forget: int) -> dict[tuple[int, str, str, str], float]:
    with (RESULTS / name / "results.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["dataset"] == "folder" and row["forget"] == str(forget) and row["value"]]
    return {(int(row["seed"]), row["method"], row["set"], row["metric"]): float(row["value"]) for row in rows}


def published() -> dict[str, dict[str, list[str]]]:
    """The cells of the table of old and new values, by part and method."""
    page = (RESULTS.parent / "appendix" / "benchmark.md").read_text(encoding="utf-8")
    table = page.partition("## mAP as it is defined today")[2].partition("\n## ")[0]
    found: dict[str, dict[str, list[str]]] = {}
    for line in re.findall(r"^\| (.+) \|$", table, re.MULTILINE)[1:]:
        label, *cells = line.split(" | ")
        if part := re.fullmatch(r"\*(.+)\*: (.+)", label):
            rows, label = found.setdefault(part[1], {}), part[2]
        rows[label] = cells
    return found


def fixed(value: float, decimals: int = 1) -> str:
    return f"{value:.{decimals}f}".replace("-0.00", "0.00")


def over_seeds(values: list[float]) -> str:
    half_width = float(stats.t.ppf(0.975, 2)) * stdev(values) / 3**0.5
    return f"{fmean(values):.1f} ± {half_width:.1f}" if half_width > 1e-9 else f"{fmean(values):.1f}"


@pytest.mark.parametrize(("part", "folder", "forget", "counted"), TABLES)
def test_changed_rows_follow_from_the_published_scores(part: str, folder: str, forget: int, counted: int) -> None:
    numbers = read(folder, forget)
    assert 40 - numbers[1, "oracle", "forget", "labels_left_out"] == counted

    def scores(seed: int, method: str, *, new: bool) -> dict[str, float]:
        found = {name: numbers[seed, method, name, "map"] for name in ("retain", "forget", "test")}
        changed = (counted * found["forget"] - 100) / (counted - 1)
        return found | {"forget": changed} if new and seed == 1 else found

    def tow(seed: int, method: str, *, new: bool) -> float:
        own, oracle = (scores(seed, name, new=new) for name in (method, "oracle"))
        return 100 * prod(1 - abs(own[name] - oracle[name]) / 100 for name in own)

    for method, cells in published()[part].items():
        old_forget, new_forget = (scores(1, method, new=new)["forget"] for new in (False, True))
        original, oracle = (scores(1, name, new=True)["forget"] for name in ("do nothing", "oracle"))
        closure = (original - new_forget) / (original - oracle)
        assert closure == pytest.approx(numbers[1, method, "", "gap_closure"], abs=1e-8)
        assert tow(1, method, new=False) == pytest.approx(numbers[1, method, "", "tow"], abs=1e-6)
        assert cells == [
            *map(fixed, (old_forget, new_forget, tow(1, method, new=False), tow(1, method, new=True))),
            fixed(closure, 2),
            *(over_seeds([tow(seed, method, new=new) for seed in SEEDS]) for new in (False, True)),
        ], method
    methods = {method for _, method, name, metric in numbers if (name, metric) == ("forget", "map")}
    for method in methods:
        assert abs(scores(1, method, new=True)["forget"] - scores(1, method, new=False)["forget"]) < 1.75
        assert abs(tow(1, method, new=True) - tow(1, method, new=False)) < 1.55
        assert abs(fmean(tow(s, method, new=True) for s in SEEDS) - fmean(tow(s, method, new=False) for s in SEEDS)) < 0.55


def test_every_part_is_in_the_table() -> None:
    assert published().keys() == {part for part, *_ in TABLES}
