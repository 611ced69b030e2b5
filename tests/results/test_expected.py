"""Expected values of tables: the published files, comparison at the tolerance, missing rows, and files that are invalid."""

from __future__ import annotations

import copy
import json
import math
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any

import expected_values
import pytest
import yaml

from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.results.expected import ExpectedTables, compare, read_expected
from oneshui_hf.stages.benchmarking.grid import read_grid
from support.report_rows import failed, row

RESULTS = Path(__file__).parents[2] / "docs" / "results"
RANKS = {  # tolerances of numbers that are in no column
    "difference.outputs.loss_rise.owner.rank": 5.0,
    "difference.outputs.loss_rise.owner.batch_share": 0.2,
    "difference.weights.owner.rank": 10.0,
    "person_level.auc": 0.2,
    "attack.rmia.auc": 0.1,
    "attack.iam.auc": 0.15,
    "attack.u_lira.auc": 0.1,
}
GIVEN = {"retain": 3.0, "forget": 4.0, "test": 3.0, "tow": 5.0, "gap_closure": 0.1}  # without reference models there is no noise floor
RENAMED = {"forget-keys": "forget-keys quantile"}
ROWS = [row(label, strength, seed=seed) for seed in (0, 1) for label, strength in (("original", 0.0), ("oracle", 1.0), ("ssd", 0.5))]
TOW = fmean(one["metrics"]["tow"] for one in ROWS if one["method"] == "ssd")


def table(label: str = "ssd", seeds: tuple[int, ...] = (0, 1), **cells: tuple[float, float]) -> dict[str, Any]:
    values = {column: {"expected": expected, "tolerance": tolerance} for column, (expected, tolerance) in cells.items()}
    return {
        "format": 1,
        "grid": "tiny",
        "tables": [{"dataset": "synthetic", "forget": 4, "seeds": list(seeds), "rows": {label: values}}],
    }


def compared(contents: dict[str, Any], rows: list[dict[str, Any]] = ROWS) -> dict[str, Any]:
    return compare(ExpectedTables.model_validate(contents), rows)


def test_a_cell_is_off_beyond_its_tolerance_alone() -> None:
    inside = compared(table(tow=(TOW + 0.999, 1.0)))
    assert inside == {"cells": 1, "off": [], "missing": []}
    outside = compared(table(tow=(TOW + 1.001, 1.0), retain=(0.0, 1000.0)))
    assert outside["cells"] == 2
    [cell] = outside["off"]
    place = {"dataset": "synthetic", "forget": 4, "row": "ssd", "column": "tow", "expected": TOW + 1.001, "tolerance": 1.0}
    assert cell == place | {"found": pytest.approx(TOW)}


@pytest.mark.parametrize("value", [None, math.nan])
def test_unknown_value_is_off(value: float | None) -> None:
    rows = copy.deepcopy(ROWS)
    rows[-1]["metrics"]["tow"] = value
    [cell] = compared(table(tow=(TOW, 1000.0)), rows)["off"]
    assert cell["column"] == "tow"


def test_any_number_of_the_results_is_a_column() -> None:
    loss = fmean(one["metrics"]["forget"]["loss"] for one in ROWS if one["method"] == "ssd")
    assert compared(table(**{"forget.loss": (loss, 1e-9)})) == {"cells": 1, "off": [], "missing": []}
    [cell] = compared(table(**{"forget.loss": (loss + 0.2, 0.1)}))["off"]
    assert cell["found"] == pytest.approx(loss)
    [cell] = compared(table(**{"forget.los": (loss, 1.0)}))["off"]
    assert cell["found"] is None


@pytest.mark.parametrize(
    ("contents", "rows", "label", "reason"),
    [
        (table("jit", tow=(1.0, 1.0)), ROWS, "jit", "the table has no such row"),
        (table(seeds=(0, 1, 2), tow=(1.0, 1.0)), ROWS, "ssd", "measured for seeds 0, 1, expected for seeds 0, 1, 2"),
        (table(tow=(1.0, 1.0)), [*ROWS[:-1], failed("ssd", "why", seed=1)], "ssd", "done for 1 of 2 seeds"),
        (table(tow=(1.0, 1.0)), [one | {"forget": 5} for one in ROWS], None, "the benchmark has no such table"),
    ],
)
def test_missing_rows_are_named(contents: dict[str, Any], rows: list[dict[str, Any]], label: str | None, reason: str) -> None:
    found = compared(contents, rows)
    assert found == {"cells": 0, "off": [], "missing": [{"dataset": "synthetic", "forget": 4, "row": label, "reason": reason}]}


def write(folder: Path, text: str) -> Path:
    (folder / "expected.json").write_text(text)
    return folder / "expected.json"


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("[]", OneshuiError, "contains no JSON object"),
        ("{", OneshuiError, "is not JSON"),
        ('{"format": 1}', OneshuiError, "has no field 'grid'"),
        (json.dumps(table(tow=(1.0, 1.0)) | {"format": 2}), OneshuiError, "'format' should be 1"),
        (json.dumps(table(tow=(1.0, 1.0)) | {"tables": []}), OneshuiError, "'tables'"),
        (json.dumps(table(tow=(1.0, -1.0))), OneshuiError, "tolerance' should be greater than or equal to 0"),
        (json.dumps(table(towe=(1.0, 1.0), tow=(1.0, 1.0))), UsageError, "have no column"),
        (json.dumps(table(tow=(1.0, 1.0)) | {"grid": "faces"}), UsageError, "of grid 'faces', not of 'tiny'"),
        (json.dumps(table(tow=(1.0, 1.0))).replace(": 1.0,", ': "1",'), OneshuiError, "expected' should be a valid number"),
    ],
)
def test_invalid_file_is_an_error_of_one_sentence(tmp_path: Path, text: str, kind: type[OneshuiError], words: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(kind) as caught:
        read_expected(file, "tiny")
    assert words in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_missing_file_is_an_error_with_an_example(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no file .*/none\.json; --check takes a JSON file"):
        read_expected(tmp_path / "none.json", "tiny")


@pytest.mark.parametrize("grid", ["faces", "paper-regime", "unrepaired", "ablations"])
def test_published_files_follow_from_the_published_results(grid: str) -> None:
    file = RESULTS / "expected" / f"{grid}.json"
    assert json.loads(file.read_text()) == expected_values.expected_tables([RESULTS / grid / "results.csv"], grid, RENAMED)
    found = read_expected(file, grid)
    cells = [cell for one in found.tables for cells in one.rows.values() for cell in cells.values()]
    assert len(cells) > 80
    assert all(0 < cell.tolerance < 12 for cell in cells)


@pytest.mark.parametrize(
    ("grid", "source"),
    [("cross-fit", "paper-regime/today.csv"), ("folds", "folds/results.csv"), ("baselines", "baselines/results.csv")],
)
def test_published_files_of_small_grids_follow_from_their_results(grid: str, source: str) -> None:
    file = RESULTS / "expected" / f"{grid}.json"
    assert json.loads(file.read_text()) == expected_values.expected_tables([RESULTS / source], grid)
    assert all(table.rows.keys() > {"do nothing", "oracle"} for table in read_expected(file, grid).tables)


def test_published_file_of_the_papers_preset_has_given_tolerances() -> None:
    file = RESULTS / "expected" / "paper-preset.json"
    source = RESULTS / "paper-preset" / "results.csv"
    assert json.loads(file.read_text()) == expected_values.expected_tables([source], "paper-preset", without_floor=GIVEN)
    tables = read_expected(file, "paper-preset").tables
    assert [table.dataset for table in tables] == ["strong memorisation", "the paper's regime"]
    assert all("metaunlearn paper" in table.rows for table in tables)


@pytest.mark.parametrize(
    "grid", ["faces", "paper-regime", "difference", "cross-fit", "folds", "baselines", "unrepaired", "ablations", "paper-preset"]
)
def test_published_tables_are_of_the_grid(grid: str) -> None:
    file = {"faces": "grid"}.get(grid, grid)
    text = yaml.safe_load((RESULTS / f"{file}.yaml").read_text())
    labels = {method.get("label", method["method"]) for method in text["methods"]} | {"do nothing", "oracle"}
    sizes = {(data["name"], forget) for data in text["datasets"] for forget in data["forget"]}
    for found in read_expected(RESULTS / "expected" / f"{grid}.json", text["name"]).tables:
        assert (found.dataset, found.forget) in sizes
        assert set(found.rows) <= labels


GRIDS = sorted(file for file in RESULTS.glob("*.yaml") if file.stem != "unrepaired")  # its methods are no part of the package


@pytest.mark.parametrize("file", GRIDS, ids=[file.stem for file in GRIDS])
def test_published_grids_can_be_run(file: Path) -> None:
    grid = read_grid(str(file))
    assert grid.cells and grid.methods


def test_published_file_of_the_difference_follows_from_its_results() -> None:
    file = RESULTS / "expected" / "difference.json"
    sources = [RESULTS / "difference" / name for name in ("strong.csv", "exact-head.csv", "celeba.csv")]
    assert json.loads(file.read_text()) == expected_values.expected_tables(sources, "difference", further=RANKS)
    tables = {table.dataset: table for table in read_expected(file, "difference").tables}
    assert {name: table.seeds for name, table in tables.items()} == {
        "folder": [0, 1, 2],
        "folder closed form": [0, 1, 2],
        "celeba": [0, 1],
        "celeba closed form": [0, 1],
    }
    assert all(tables[name].rows["forget-keys"].keys() >= {"tow", *RANKS} for name in ("folder", "celeba"))


def test_published_file_of_the_demo_is_of_its_grid() -> None:
    [one] = read_expected(RESULTS / "expected" / "demo.json", "demo").tables
    grid = yaml.safe_load((resources.files("oneshui_hf") / "grids" / "demo.yaml").read_text())
    assert (one.seeds, [one.forget]) == (grid["seeds"], grid["forget"])


def test_expected_values_of_the_study_are_those_of_the_tables(tmp_path: Path) -> None:
    """The study reads results.csv, and the check reads the rows: both give the same means."""
    from oneshui_hf.results.tables import tidy_csv

    (tmp_path / "results.csv").write_text(tidy_csv(ROWS))
    contents = expected_values.expected_tables([tmp_path / "results.csv"], "tiny")
    assert contents["tables"][0]["seeds"] == [0, 1]
    assert contents["tables"][0]["rows"].keys() == {"do nothing", "oracle", "ssd"}
    for row_cells in contents["tables"][0]["rows"].values():
        assert row_cells.keys() == {"retain", "forget", "test", "tow", "gap_closure", "attack"}
        for cell in row_cells.values():
            cell["tolerance"] = 1e-3
    assert compared(contents) == {"cells": 18, "off": [], "missing": []}
    rows = expected_values.expected_tables([tmp_path / "results.csv"], "tiny")["tables"][0]["rows"]
    assert rows["ssd"]["tow"]["tolerance"] == pytest.approx(1.8)  # the noise floor: 100 - 98.2
