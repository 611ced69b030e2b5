"""Which packages a command imports, and imports without the garbage collector. Times are not tested: see tests/benchmarks."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import oneshui_hf
from oneshui_hf.imports import heavy_imports

CODE = """
import json, sys
from oneshui_hf.cli import main
commands, packages = json.load(sys.stdin)
for words in commands:
    sys.argv, code = ["oneshui", *words], 0
    try: main()
    except SystemExit as end: code = end.code
    print("\\n" + json.dumps([code, sorted(set(sys.modules) & set(packages))]))
"""
NEED_A_MODEL = ["torch", "transformers", "datasets", "accelerate", "numpy", "pandas", "PIL", "scipy", "pyarrow", "sklearn"]
NOT_FOR_A_REQUEST = ["datasets", "pandas", "pyarrow", "sklearn", "matplotlib", "torchvision", "torchmetrics", "torch._inductor.compile_fx"]


def run(folder: Path, commands: list[list[str]], packages: list[str]) -> list[tuple[int, list[str]]]:
    """Run commands in a process of their own; return the exit code of each, and which of the packages are imported after it."""
    given = json.dumps([commands, packages])
    done = subprocess.run([sys.executable, "-c", CODE], input=given, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(results) == len(commands), done.stdout
    return [(code, found) for code, found in results]


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """The record of an original model without weights, and a file that is no photo."""
    data = {"name": "synthetic", "task": "multi_label", "labels": ["Smiling", "Young"]}
    record = {"format": 1, "kind": "original", "seed": 0, "options": {"dataset": "synthetic"}, "dataset": data, "weights": "0"}
    record |= {"versions": {}, "state": "complete", "report": {"split": {"forget_identities": 2}}}
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "oneshui.json").write_text(json.dumps(record))
    return tmp_path / "original"


def test_commands_without_a_model_import_nothing_heavy(original: Path) -> None:
    folder = original.parent
    Image.new("RGB", (40, 40)).save(folder / "face.png")
    assert [code for code, _ in run(folder, [["requests", "receive", "face.png"]], [])] == [0]
    commands = {
        "show original": 0,
        "runs .": 0,
        "requests list": 0,
        "methods": 0,
        "predict --help": 0,
        "predict missing missing.jpg": 2,
        "predict original missing.jpg": 1,  # it has no weights
        "unlearn original --image missing.jpg": 2,
        "unlearn missing --image missing.jpg": 2,
        "evaluate missing": 2,
    }
    found = run(folder, [command.split() for command in commands], NEED_A_MODEL)
    assert found == [(code, []) for code in commands.values()]


@pytest.mark.slow
def test_unlearn_and_predict_import_no_data_packages(tmp_path: Path) -> None:
    trained = oneshui_hf.train(dataset="synthetic", forget=2, epochs=1, output_dir=str(tmp_path / "original"))
    pixels = np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "face.png")
    path = str(trained.path)
    commands = [["predict", path, "face.png"], ["unlearn", path, "--image", "face.png", "--method", "gradient-ascent"]]
    found = run(tmp_path, commands, [*NOT_FOR_A_REQUEST, "torch", "transformers"])
    assert found == [(0, ["torch", "transformers"])] * 2  # these two are found, so others would be


def test_heavy_imports_pause_the_collector_and_keep_its_state() -> None:
    assert gc.isenabled()
    with heavy_imports():
        assert not gc.isenabled()
        with heavy_imports():
            pass
        assert not gc.isenabled()
        young = [[] for _ in range(10)]
        assert any(item is young for item in gc.get_objects(generation=0))
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0  # nothing stays frozen, or cycles of the caller would never be freed
    assert any(item is young for item in gc.get_objects(generation=2))
    gc.disable()
    try:
        with heavy_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_heavy_imports_keep_what_the_caller_has_frozen() -> None:
    gc.freeze()
    try:
        with heavy_imports():
            pass
        assert gc.get_freeze_count() > 0
        assert gc.isenabled()
    finally:
        gc.unfreeze()


def test_collector_is_enabled_after_a_failed_import() -> None:
    with pytest.raises(ModuleNotFoundError), heavy_imports():
        __import__("no_such_package")
    assert gc.isenabled()


def test_exit_code_and_output_stay(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "oneshui_hf", "show", "missing"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ")
