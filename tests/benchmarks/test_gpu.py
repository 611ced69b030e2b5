"""The GPU script runs on a CPU at tiny sizes, so that it works at once where a card is at hand."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "gpu.py"
PARTS = ("train", "train --compile", "train --fp16", "evaluate", "metaunlearn step", "forget-keys", "two processes on one card")


@pytest.mark.slow
def test_smoke_run_measures_every_part(tmp_path: Path) -> None:
    words = [sys.executable, SCRIPT, "--smoke", "--output", tmp_path / "table.json"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr + done.stdout
    table = json.loads((tmp_path / "table.json").read_text())
    assert json.loads(done.stdout) == table
    parts = table["parts"]
    assert tuple(parts) == PARTS
    for name in PARTS[:4]:
        assert 0 < parts[name]["images_per_second"] < math.inf
        assert 0 < parts[name]["share_of_matrix_rate"] < 1  # a share above 1 would mean that the operations are counted wrongly
    # By hand: 16 patches of 8 x 8 x 3 and the class token, 2 blocks of width 16 (4 projections, scores, sums, 2 x 32), 40 labels.
    tokens = 17
    block = tokens * (4 * 16 * 16 + 2 * 16 * 32) + 2 * tokens * tokens * 16
    assert table["forward_gflops_per_photo"] * 1e9 == pytest.approx(2 * (16 * 192 * 16 + 2 * block + 16 * 40))
    assert parts["train --fp16"]["loss"] == parts["train"]["loss"]  # on a CPU both compute in full precision
    assert parts["train --compile"]["loss"] == pytest.approx(parts["train"]["loss"], rel=1e-4)
    assert parts["two processes on one card"]["same_loss"]
    assert parts["metaunlearn step"]["aims"].keys() >= {"time_ratio"}


@pytest.mark.slow
def test_without_a_gpu_the_script_names_smoke() -> None:
    words = [sys.executable, SCRIPT]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "No CUDA device was found; --smoke runs tiny sizes on the CPU."
