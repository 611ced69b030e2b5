"""Permissions of what the commands write: folders of runs and files that name people are for the owner, the umask decides for the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import oneshui_hf
from oneshui_hf.stages.training import checkpoint

pytestmark = pytest.mark.slow

PRIVATE = {"split.json", "curves.json"}
RECIPE = {"dataset": "synthetic", "forget": 2, "epochs": 1, "optimizer": "adamw", "keep": "last"}


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    former = os.umask(request.param)
    yield request.param
    os.umask(former)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def require_right_modes(folder: Path, umask: int) -> set[str]:
    """Check the modes of all files in a run, and return their names."""
    assert mode(folder) == 0o700
    files = [file for file in folder.rglob("*") if file.is_file()]
    for file in files:
        is_private = file.name in PRIVATE or file.parent.name == "predictions"
        assert mode(file) == (0o600 if is_private else 0o666) & ~umask, file
    for inner in folder.rglob("*"):
        assert not inner.is_dir() or mode(inner) == 0o777 & ~umask, inner
    return {file.name for file in files}


def test_runs_are_private_and_their_other_files_follow_the_umask(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "runs" / "run"
    run = oneshui_hf.train(**RECIPE, output_dir=str(path))
    oneshui_hf.evaluate(run, resamples=100)
    oneshui_hf.tune(run, method="jit", trials=1, requests=1)
    assert require_right_modes(path, umask) >= {"split.json", "curves.json", "metrics.json", "forget.safetensors", "jit.json"}
    oneshui_hf.retrain(run)
    require_right_modes(tmp_path / "runs" / "run-oracle", umask)
    assert mode(path.parent) == 0o777 & ~umask


def test_an_interrupted_run_is_private(tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        oneshui_hf.train(**RECIPE, output_dir=str(tmp_path / "run"))
    assert require_right_modes(tmp_path / "run", umask) == {"split.json", "oneshui.json"}


def test_a_drawn_split_is_private(tmp_path: Path, umask: int) -> None:
    oneshui_hf.draw_split(dataset="synthetic", forget=2, output=str(tmp_path / "split.json"))
    assert mode(tmp_path / "split.json") == 0o600 & ~umask


def test_rows_and_caches_of_a_benchmark_are_private_and_its_tables_are_not(tmp_path: Path) -> None:
    grid = {"name": "tiny", "datasets": [{"dataset": "synthetic", "forget": [2], "seeds": [0], "epochs": 1}], "methods": ["jit"]}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid | {"evaluate": {"resamples": 100}}))
    output = tmp_path / "output"
    former = os.umask(0o002)
    try:
        oneshui_hf.benchmark(tmp_path / "grid.yaml", output_dir=str(output))
    finally:
        os.umask(former)
    rows = list((output / "rows").iterdir())
    assert len(rows) == 3
    assert {mode(row) for row in rows} == {0o600}
    assert {mode(output / name) for name in ("results.csv", "tables.md", "tables.tex", "costs.csv", "benchmark.json")} == {0o664}
    assert mode(output / "cache") == 0o700
    entries = [entry for entry in (output / "cache").iterdir() if not entry.name.startswith(".") and entry.name != "CACHE.json"]
    assert {mode(entry) for entry in entries if entry.is_dir()} == {0o700}
    assert {mode(entry) for entry in entries if entry.is_file()} == {0o600}
