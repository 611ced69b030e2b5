"""The table of methods, from a benchmark's rows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from oneshui_hf.app.evaluated import WITHIN, compare_methods, runs_computed_from
from oneshui_hf.errors import UsageError
from oneshui_hf.runs import Run, with_checksum, write_json
from support.report_rows import row


def test_a_benchmark_is_one_table_with_numbers_and_verdicts(built: Run, tmp_path: Path) -> None:
    rows = [row("original", 0), row("oracle", 1), row("gradient-ascent", 0.3), row("ssd", 0.9)]
    for number, entry in enumerate(rows):
        write_json(tmp_path / "rows" / f"{number}.json", with_checksum(entry))
    (table,) = compare_methods(built, str(tmp_path))
    assert (table.columns[0], table.columns[-1]) == ("method", WITHIN)
    labels = [line[0] for line in table.rows]
    assert labels[0] == "do nothing"
    assert {"oracle", "noise floor", "gradient-ascent", "ssd"} <= set(labels)
    place = next(number for number, column in enumerate(table.columns) if column.startswith("ToW"))
    by_label = {line[0]: line[place] for line in table.rows}
    expected = {entry["method"]: entry["metrics"]["tow"] for entry in rows if entry["row"] == "method"}
    assert {name: by_label[name] for name in expected} == pytest.approx(expected, abs=0.051)
    assert {label for label, _ in table.verdicts} == {"do nothing", "gradient-ascent", "ssd"}
    assert all(sentence.endswith(".") for _, sentence in table.verdicts)


def test_without_evaluated_runs_there_is_no_table(built: Run) -> None:
    assert compare_methods(built, None) == []


def test_an_empty_benchmark_is_one_sentence(built: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="contains no rows yet"):
        compare_methods(built, str(tmp_path))


def test_only_runs_of_these_weights_count_and_damaged_ones_are_skipped(built: Run, tmp_path: Path) -> None:
    import json

    original = Run.open(shutil.copytree(built.path, tmp_path / "original"))
    for name, weights in (("mine", original.record.weights), ("other", "b" * 64)):
        record = json.loads((original.path / "oneshui.json").read_text())
        (tmp_path / name).mkdir()
        (tmp_path / name / "oneshui.json").write_text(json.dumps(record | {"kind": "oracle", "parent": {"run": "x", "weights": weights}}))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "oneshui.json").write_text("{")
    assert [run.path.name for run in runs_computed_from(original)] == ["mine"]
