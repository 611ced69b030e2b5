"""Two commands at the same time: the second one ends with one sentence, and the first one's files stay as they are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import oneshui_hf
from oneshui_hf.errors import OneshuiError
from oneshui_hf.runs import Run
from support.commands import Oneshui, sentence
from support.processes import another_writer

TRAIN = ("train", "--dataset", "synthetic", "--forget", "2", "--epochs", "1", "--optimizer", "adamw", "--keep", "last")
GRID: dict[str, Any] = {
    "name": "tiny",
    "datasets": [{"dataset": "synthetic", "forget": [2], "seeds": [0], "epochs": 1}],
    "methods": ["do-nothing"],
    "evaluate": {"resamples": 100},
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("runs") / "run"
    return oneshui_hf.train(dataset="synthetic", forget=2, epochs=1, optimizer="adamw", keep="last", output_dir=str(path))


@pytest.fixture
def run(original: Run, tmp_path: Path) -> Path:
    return shutil.copytree(original.path, tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock"}


@pytest.mark.parametrize(
    ("words", "output", "option"),
    [
        ((*TRAIN, "--output-dir", "new"), "new", "--output-dir"),
        ((*TRAIN, "--output-dir", "run", "--overwrite"), "run", "--output-dir"),
        (("train", "--dataset", "synthetic", "--output-dir", "run", "--resume"), "run", "--output-dir"),
        (("retrain", "--run", "run"), "run-oracle", "--output-dir"),
        (("tune", "--run", "run", "--method", "jit", "--trials", "1"), "run/tuned/jit.json", "--output"),
        (("benchmark", "grid.yaml", "--output-dir", "bench"), "bench", "--output-dir"),
        (("benchmark", "grid.yaml", "--output-dir", "bench", "--shard", "1/2"), "bench.shard-1-of-2", "--output-dir"),
        (("evaluate", "--run", "run"), "run", None),
    ],
)
def test_a_command_whose_output_another_process_writes_ends_with_one_sentence(
    oneshui: Oneshui, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Sequence[str], output: str, option: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(GRID))
    with another_writer(tmp_path / output):
        before = contents(tmp_path)
        code, out, err = oneshui(*words)
        assert contents(tmp_path) == before
    advice = f", or name another {option}." if option else "."
    assert (code, out) == (1, "")
    assert sentence(err).endswith(f"Another process is writing {output}; wait until it has ended{advice}")


@pytest.mark.slow
def test_shards_of_a_benchmark_run_at_the_same_time(tmp_path: Path, oneshui: Oneshui) -> None:
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(GRID))
    with another_writer(tmp_path / "bench.shard-1-of-2"):
        code, _, err = oneshui("benchmark", tmp_path / "grid.yaml", "--output-dir", tmp_path / "bench", "--shard", "2/2")
    assert code == 0, err
    rows = tmp_path / "bench" / "rows"
    assert len(list(rows.iterdir())) == 1
    (rows / ".a.json.0123abcd.partial").write_text("left by a killed process")
    assert oneshui("benchmark", tmp_path / "grid.yaml", "--output-dir", tmp_path / "bench", "--shard", "2/2")[0] == 0
    assert len(list(rows.iterdir())) == 1


def test_a_run_that_was_replaced_meanwhile_is_not_evaluated(run: Path) -> None:
    opened = Run.open(run)
    oneshui_hf.train(dataset="synthetic", forget=1, epochs=1, seed=3, overwrite=True, output_dir=str(run))
    for command in (oneshui_hf.evaluate, oneshui_hf.retrain):
        with pytest.raises(OneshuiError, match="is not the split of its run|Another process has replaced"):
            command(opened)
    assert not (run / "metrics.json").exists()
    assert not Path(f"{run}-oracle").exists()


def start(*words: object) -> subprocess.Popen[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "oneshui_hf", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("resume", [False, True])
def test_of_two_trainings_in_one_folder_one_is_completed(tmp_path: Path, resume: bool) -> None:
    path = tmp_path / "run"
    first = start(*TRAIN, "--epochs", 15, "--seed", 1, "--output-dir", path)
    wait_for(lambda: any(path.glob("checkpoint-*")))
    words = ("train", "--dataset", "synthetic", "--resume") if resume else (*TRAIN, "--seed", 2, "--overwrite")
    second = start(*words, "--output-dir", path)
    _, err = second.communicate(timeout=120)
    _, first_err = first.communicate(timeout=120)
    assert (first.returncode, second.returncode) == (0, 1), first_err + err
    assert "Another process is writing" in sentence(err)
    run = Run.open(path).require_complete().require_split()
    assert run.record.seed == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_two_benchmarks_with_one_cache_give_the_same_tables(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(GRID))
    words = ("benchmark", tmp_path / "grid.yaml", "--cache-dir", tmp_path / "cache", "--output-dir")
    both = [start(*words, tmp_path / name) for name in ("one", "two")]
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    tables = [(tmp_path / name / "results.csv").read_text() for name in ("one", "two")]
    assert tables[0] == tables[1]
    assert tables[0].count("failed") == 0


@pytest.mark.slow
def test_a_refused_launch_of_two_processes_ends_with_the_sentence(tmp_path: Path) -> None:
    env = os.environ | {"ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "oneshui_hf", *TRAIN]
    with another_writer(tmp_path / "run"):
        done = subprocess.run([*launch, "--output-dir", str(tmp_path / "run")], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("Another process is writing") == 1
    assert not (tmp_path / "run").exists()
