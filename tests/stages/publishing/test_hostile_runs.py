"""A published run that brings Python code, in real processes: nothing is run, nothing is asked, one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.models.load import save_model
from oneshui_hf.runs import Record, hash_weights, write_record
from support.architectures import classifier
from support.faces import portrait
from support.hub_server import Hub

MAPS = {
    "config.json": {
        "model_type": "canary",  # unknown to transformers, which would then ask
        "auto_map": {"AutoConfig": "canary.Canary", "AutoModelForImageClassification": "canary.Canary"},
    },
    "preprocessor_config.json": {"image_processor_type": "Canary", "auto_map": {"AutoImageProcessor": "canary.Canary"}},
}


def hostile_run(folder: Path, file: str) -> Path:
    """Return a run with code, which writes a file called `ran` next to the run if it is imported."""
    run = folder / "run"
    save_model(classifier("vit", "multi_label"), Preprocess(32), run)
    description = {"name": "x", "labels": list("abcde"), "task": "multi_label", "images": 10, "identities": 2}
    report = {"split": {"forget_identities": 1}}
    write_record(run, Record("original", 0, {"dataset": "synthetic"}, description, weights=hash_weights(run), report=report))
    (run / file).write_text(json.dumps(json.loads((run / file).read_text()) | MAPS[file]))
    code = f"open({str(folder / 'ran')!r}, 'w').close()\nfrom transformers import ViTConfig as Canary\n"
    (run / "canary.py").write_text(code)
    portrait(0, 0).save(folder / "photo.png")
    return run


def answer_yes(hub: Hub, folder: Path, words: list[Any]) -> subprocess.CompletedProcess[str]:
    """Run a command of the installed package, with `y` as the answer to every question."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "oneshui_hf", *map(str, words)]
    return subprocess.run(command, input="y\n" * 20, capture_output=True, text=True, cwd=folder, env=environment, timeout=120)


def check(done: subprocess.CompletedProcess[str], folder: Path, message: str) -> None:
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert message in done.stderr
    assert [line for line in done.stderr.splitlines() if line.strip()][-1].startswith("Error: ")
    assert "[y/N]" not in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("file", "flags"), [("config.json", []), pytest.param("preprocessor_config.json", ["--json"], marks=pytest.mark.slow)]
)
def test_pull_refuses_a_run_with_code(hub: Hub, tmp_path: Path, file: str, flags: list[str]) -> None:
    run = hostile_run(tmp_path, file)
    name = f"attacker/{file.partition('_')[0].partition('.')[0]}"
    hub.add(name, {place.name: place.read_bytes() for place in run.iterdir()}, private=False)
    done = answer_yes(hub, tmp_path, ["pull", name, "--output-dir", tmp_path / "pulled", *flags])
    check(done, tmp_path, f"Error: {name} brings its own Python code (auto_map in {file}), which is not run; use another model.")
    assert not (tmp_path / "pulled").exists()
    assert not any("canary" in request.path for request in hub.requests)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (["predict", "run", "photo.png"], ["--json"]),
        pytest.param(["predict", "run", "photo.png"], [], marks=pytest.mark.slow),
        pytest.param(
            ["unlearn", "--run", "run", "--method", "gradient-ascent", "--image", "photo.png"], ["--json"], marks=pytest.mark.slow
        ),
        pytest.param(["unlearn", "--run", "run", "--method", "gradient-ascent", "--image", "photo.png"], [], marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("file", ["config.json", pytest.param("preprocessor_config.json", marks=pytest.mark.slow)])
def test_commands_refuse_a_run_with_code(hub: Hub, tmp_path: Path, command: list[str], flags: list[str], file: str) -> None:
    hostile_run(tmp_path, file)
    seen = len(hub.requests)
    done = answer_yes(hub, tmp_path, [*command, *flags])
    check(done, tmp_path, f"run brings its own Python code (auto_map in {file}), which is not run; use another model.")
    assert len(hub.requests) == seen
    assert {place.name for place in tmp_path.iterdir()} <= {"run", "photo.png", "home"}
