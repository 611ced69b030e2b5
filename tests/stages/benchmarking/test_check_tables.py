"""`oneshui benchmark --check`: a complete benchmark is compared without running, and the exit code says whether a cell is off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oneshui_hf.results.expected import read_expected
from oneshui_hf.runs import with_checksum, write_json
from oneshui_hf.stages.benchmarking.check_tables import check_complete_benchmark
from support.commands import Oneshui, sentence
from support.report_rows import failed, row

LABELS = {"original": 0.0, "oracle": 1.0, "ssd": 0.5}
GRID = """
name: tiny
datasets: [{dataset: synthetic, epochs: 1}]
forget: [4]
seeds: [0]
methods: [{method: ssd}]
"""


@pytest.fixture
def complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a grid and its complete benchmark; running a job is an error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.yaml").write_text(GRID)
    output = tmp_path / "benchmarks" / "tiny"
    for label, strength in LABELS.items():
        write_json(output / "rows" / f"{label}.json", with_checksum(row(label, strength)))
    write_json(output / "benchmark.json", {"name": "tiny", "rows": list(LABELS)})

    def no_run(*_: object) -> None:
        raise AssertionError("a complete benchmark is not run")

    monkeypatch.setattr("oneshui_hf.stages.benchmark._run", no_run)
    return output


def expect(tolerance: float = 0.5, **cells: float) -> Path:
    values = {column: {"expected": value, "tolerance": tolerance} for column, value in cells.items()}
    table = {"dataset": "synthetic", "forget": 4, "seeds": [0], "rows": {"ssd": values}}
    file = Path("expected.json")
    file.write_text(json.dumps({"format": 1, "grid": "tiny", "tables": [table]}))
    return file


def test_cells_within_their_tolerance_end_with_code_0(complete: Path, oneshui: Oneshui) -> None:
    found = row("ssd", 0.5)["metrics"]
    code, out, err = oneshui("benchmark", "grid.yaml", "--check", expect(tow=found["tow"] + 0.4, retain=found["retain"]["map"]))
    assert code == 0, err
    assert "Check: all 2 cells are within their tolerance." in out


def test_cells_that_are_off_are_listed_and_end_with_code_1(complete: Path, oneshui: Oneshui) -> None:
    found = row("ssd", 0.5)["metrics"]
    file = expect(tow=found["tow"] + 0.6, retain=found["retain"]["map"])
    code, out, err = oneshui("benchmark", "grid.yaml", "--check", file)
    assert code == 1
    assert sentence(err).endswith("1 of 2 cells differ from their expected values by more than their tolerance.")
    [line] = [line.split() for line in out.splitlines() if line.split()[2:4] == ["ssd", "tow"]]
    assert line == ["synthetic", "4", "ssd", "tow", f"{found['tow'] + 0.6:.5g}", "0.5", f"{found['tow']:.5g}"]
    code, out, _ = oneshui("benchmark", "grid.yaml", "--check", file, "--json")
    assert code == 1
    assert [cell["column"] for cell in json.loads(out)["check"]["off"]] == ["tow"]


def test_incomplete_benchmark_runs_first(complete: Path, oneshui: Oneshui, monkeypatch: pytest.MonkeyPatch) -> None:
    (complete / "rows" / "ssd.json").unlink()

    def run(grid: Any, output: Path, *_: object) -> dict[str, Any]:
        write_json(output / "rows" / "ssd.json", with_checksum(failed("ssd", "why", seed=0)))
        return {"output": str(output), "tables": [], "rows": 3, "failed": [], "missing": 0}

    monkeypatch.setattr("oneshui_hf.stages.benchmark._run", run)
    code, out, err = oneshui("benchmark", "grid.yaml", "--check", expect(tow=90.0))
    assert code == 1
    assert "Missing: synthetic, 4 forget identities, ssd: done for 0 of 1 seeds." in out
    assert "1 row is missing" in sentence(err)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dry-run",), "cannot be given with --dry-run"),
        (("--shard", "1/2"), "cannot be given with --shard"),
        (("--check", "none.json"), "There is no file none.json"),
    ],
)
def test_wrong_use_is_an_error(complete: Path, oneshui: Oneshui, words: tuple[str, ...], message: str) -> None:
    given = words if "--check" in words else ("--check", str(expect(tow=1.0)), *words)
    code, _, err = oneshui("benchmark", "grid.yaml", *given)
    assert code == 2
    assert message in sentence(err)


def test_failed_rows_run_again_first(complete: Path) -> None:
    write_json(complete / "rows" / "ssd.json", with_checksum(failed("ssd", "why", seed=0)))
    assert check_complete_benchmark(complete, read_expected(expect(tow=90.0), "tiny")) is None
