"""1, 2 and 4 real processes (gloo) with the same global batch: every command gives the same results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import oneshui_hf
from oneshui_hf.runs import Run, read_json

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "support" / "many_processes.py"
ENVIRONMENT = {"ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
LAUNCHERS = {
    1: [],
    2: ACCELERATE,
    4: ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"],
}


def launch(*words: object, timeout: int = 1800) -> subprocess.CompletedProcess[str]:
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parents[1], *filter(None, sys.path))))}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ENVIRONMENT | paths, timeout=timeout)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The folder of each number of processes."""
    root = tmp_path_factory.mktemp("processes")
    oneshui_hf.train(dataset="synthetic", forget=2, epochs=3, optimizer="adamw", output_dir=str(root / "run"), keep="last")
    folders = {}
    for processes, launcher in LAUNCHERS.items():
        folders[processes] = root / str(processes)
        folders[processes].mkdir()
        launch(*launcher, SCRIPT, root / "run", folders[processes])
    return folders


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("name", ["trained", "retrained"])
def test_weights_after_more_than_20_steps(results: dict[int, Path], name: str, processes: int) -> None:
    record = Run.open(results[1] / name).record
    photos = record.report["split"]["images"]["train" if name == "trained" else "retain"]
    assert record.report["epochs"] * -(-photos // 32) >= 20
    one, other = (load_file(results[number] / name / "model.safetensors") for number in (1, processes))
    assert one.keys() == other.keys()
    assert max((one[key] - other[key]).abs().max().item() for key in one) < 1e-5


@pytest.mark.parametrize("processes", [2, 4])
def test_metrics_have_the_same_bytes(results: dict[int, Path], processes: int) -> None:
    for name in ("metrics.json", "curves.json"):
        assert (results[processes] / "evaluated" / name).read_bytes() == (results[1] / "evaluated" / name).read_bytes()


@pytest.mark.parametrize("processes", [2, 4])
def test_methods_prepare_and_apply_the_same(results: dict[int, Path], processes: int) -> None:
    files = sorted(results[1].glob("*.safetensors"))
    assert len(files) >= 20
    for file in files:
        one, other = load_file(file), load_file(results[processes] / file.name)
        assert one.keys() == other.keys(), file.name
        for key, expected in one.items():
            found = other[key]
            if expected.is_floating_point():
                scale = float(expected.abs().max()) or 1.0
                assert torch.allclose(found, expected, rtol=0, atol=1e-3 * scale), (file.name, key)
            else:  # of quantized keys, a number at the border between two integers may be rounded either way
                assert (found == expected).double().mean() > 0.98, (file.name, key)


@pytest.mark.parametrize("processes", [2, 4])
def test_a_benchmark_runs_all_jobs(results: dict[int, Path], processes: int) -> None:
    for number in (1, processes):
        rows = [read_json(file) for file in (results[number] / "benchmark" / "rows").glob("*.json")]
        assert sorted((row["method"], row["state"]) for row in rows) == [
            (name, "done") for name in ("gradient-ascent", "oracle", "original")
        ]


def test_accelerate_launch_runs_a_command_on_two_cpu_processes(tmp_path: Path) -> None:
    words = ["train", "--dataset", "synthetic", "--epochs", 1, "--keep", "last", "--augment", "none"]
    launch(*ACCELERATE, "-m", "oneshui_hf", *words, "--batch-size", 16, "--output-dir", tmp_path / "accelerate")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    launch(*torchrun, "oneshui_hf", *words, "--batch-size", 16, "--output-dir", tmp_path / "torchrun")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("accelerate", "torchrun")]
    assert weights[0] == weights[1]
