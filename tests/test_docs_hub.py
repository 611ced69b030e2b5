"""The commands of the README, and of the guides that need CelebA or the Hub, run as they are written; their output is compared in shape.

CelebA and the Hub are replaced by stand-ins: generated people in CelebA's layout, a Hub on the loopback interface, and on it a small model
under the name of the default backbone. The words of each command stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneshui_hf.stages.command_options import DEFAULT_MODEL
from support.celeba_layout import SIZE, small_backbone, write_celeba, write_celebahq, write_mufac
from support.command_process import CommandProcess, hub_environment
from support.faces import portrait, write_photos
from support.hub_server import Hub
from support.page_commands import compare
from support.pages import DOCS, ROOT, Command, console_commands
from support.served import ask, require_gradio, served

pytestmark = pytest.mark.slow
ELSEWHERE = (
    "oneshui demo",  # the tutorial runs it
    "oneshui benchmark paper",  # the grid takes days; a test of its own runs its plan
    "oneshui report benchmarks/paper",  # the report of that grid
    "pip install",  # changes the environment of the tests
)
PERSON = 4711  # whom the pages forget


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as running:
        running.add(DEFAULT_MODEL, small_backbone(), private=False)
        yield running


@pytest.fixture(scope="module")
def oneshui_on(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandProcess]:
    """A process that runs commands one after the other; it is logged in as USER."""
    process = CommandProcess(hub, tmp_path_factory.mktemp("home"), "hf_user")
    yield process
    process.close()


def run_commands(page: Path, process: CommandProcess, folder: Path) -> None:
    """Run the calls of `oneshui` of a page in their order."""
    for command in console_commands(page):
        if not command.words.startswith(ELSEWHERE):
            run_in(process, command, folder)


def run_in(process: CommandProcess, command: Command, folder: Path) -> None:
    """Run a call of `oneshui`; what the page shows has to be among its output."""
    words = shlex.split(command.words)
    assert words[0] == "oneshui", command.words
    answer = process(words[1:], folder)
    compare(command, answer.code, answer.out + answer.err)


def write_stand_ins(folder: Path) -> None:
    """Write what the pages call DIR (CelebA) and face.jpg (a further photo of the person 4711, who is in the training set)."""
    write_celeba(folder / "DIR", (PERSON, *range(301, 321)), photos=3)
    portrait(PERSON, 9, SIZE).save(folder / "face.jpg")


@pytest.fixture(scope="module")
def after_celeba(oneshui_on: CommandProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the guide to CelebA was run."""
    folder = tmp_path_factory.mktemp("celeba")
    write_stand_ins(folder)
    run_commands(DOCS / "guides" / "face-datasets.md", oneshui_on, folder)
    return folder


def test_face_data_sets(after_celeba: Path) -> None:
    run = after_celeba / "runs" / "celeba-seed0-forget-keys"
    assert (run / "report.html").is_file()
    assert (run / "metrics.json").is_file()
    assert (after_celeba / "runs" / "celeba-seed0" / "tuned" / "ssd.json").is_file()


def test_plan_of_the_paper(oneshui_on: CommandProcess, tmp_path: Path) -> None:
    write_celeba(tmp_path / "DIR", range(40))
    write_celebahq(tmp_path / "DIR", range(150))
    write_mufac(tmp_path / "DIR", people=40)
    guide = console_commands(DOCS / "guides" / "face-datasets.md")
    [plan] = [command for command in guide if command.words.startswith("oneshui benchmark paper") and "--dry-run" in command.words]
    run_in(oneshui_on, plan, tmp_path)


def test_publishing(hub: Hub, oneshui_on: CommandProcess, after_celeba: Path, tmp_path: Path) -> None:
    shutil.copytree(after_celeba / "runs", tmp_path / "runs")
    for name in ("photos", "DIR"):
        (tmp_path / name).mkdir()
        write_photos(tmp_path / name, people=12, photos=2, name_of="person{}".format)
    shutil.copyfile(after_celeba / "face.jpg", tmp_path / "face.jpg")
    run_commands(DOCS / "guides" / "publishing.md", oneshui_on, tmp_path)
    assert hub.repos["USER/NAME"].private
    assert "model.safetensors" in hub.files("USER/NAME")
    assert [file for file in hub.files("datasets/USER/NAME") if file.endswith(".parquet")]
    assert (tmp_path / "runs" / "theirs-gradient-ascent" / "model.safetensors").is_file()


def test_app(hub: Hub, oneshui_on: CommandProcess, after_celeba: Path, tmp_path: Path) -> None:
    require_gradio()
    shutil.copytree(after_celeba / "runs" / "celeba-seed0", tmp_path / "demo" / "original")  # stands for that of `oneshui demo`
    shutil.copytree(after_celeba / "runs", tmp_path / "runs")
    (tmp_path / "password.txt").write_text("secret")
    for command in console_commands(DOCS / "guides" / "app.md"):
        words = shlex.split(command.words)
        if words[:2] == ["oneshui", "app"]:
            with served(*words[1:], home=tmp_path) as (address, _):
                assert ask(address, "config")[0] == (401 if "--auth" in words else 200)
        elif words[0] == "chmod":
            subprocess.run(words, cwd=tmp_path, check=True)
        elif not command.words.startswith(ELSEWHERE):
            run_in(oneshui_on, command, tmp_path)
    assert "app.py" in hub.files("spaces/USER/PAGE")


def test_request_desk(oneshui_on: CommandProcess, tmp_path: Path) -> None:
    write_stand_ins(tmp_path)
    write_celeba(tmp_path / "OTHERS", range(301, 321), photos=3)  # a later data set, without the person
    for words in (
        "oneshui train --dataset celeba --data-dir DIR --epochs 4 --lr 0.1",
        "oneshui prepare runs/celeba-seed0 --method forget-keys --targets quantile --steps-per-identity 2",
        "oneshui train --dataset celeba --data-dir OTHERS --seed 1 --epochs 1",
    ):
        run_in(oneshui_on, Command(words, ()), tmp_path)
    ledger = tmp_path / "requests" / "ledger.jsonl"
    for command in console_commands(DOCS / "guides" / "requests.md"):
        words = command.words
        if "--anchor" in words:
            words = words.replace("3f9a...", hashlib.sha256(ledger.read_bytes().splitlines()[-1]).hexdigest())
        run_in(oneshui_on, Command(words, command.output), tmp_path)
    assert json.loads((tmp_path / "runs" / "celeba-seed0" / "oneshui.json").read_text())["kind"] == "original"
    assert (tmp_path / "requests" / "letters" / "R-000001.md").is_file()


TRACKERS = ("oneshui train --dataset synthetic --report-to", "oneshui prepare --report-to")  # not among the packages of the tests


def test_scale(hub: Hub, tmp_path: Path) -> None:
    write_stand_ins(tmp_path)
    for command in console_commands(DOCS / "guides" / "scale.md"):
        if not command.words.startswith(("pip install", *TRACKERS)):
            run_on_all_machines(command, hub, tmp_path)
    assert (tmp_path / "runs" / "celeba-seed0" / "model.safetensors").is_file()


def run_on_all_machines(command: Command, hub: Hub, folder: Path) -> None:
    """Run a command with two processes in the place of eight, and the commands of two machines on this one, at once."""
    environment = hub_environment(hub, folder, "hf_user") | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    words = re.sub(r"--num_processes (8|16)", "--num_processes 2", command.words).replace("HOST", "127.0.0.1")
    words += " --overwrite --epochs 2" if " train " in words else ""  # each way of training writes the same run
    words += " --steps 2" if "--method metaunlearn" in words else ""
    ranks = [words, words.replace("--machine_rank 0", "--machine_rank 1")] if "--machine_rank" in words else [words]
    settings = {"cwd": folder, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    for process in [subprocess.Popen(["bash", "-c", each], **settings) for each in ranks]:  # type: ignore[call-overload]
        text, _ = process.communicate(timeout=900)
        compare(command, process.returncode, text)


def test_readme(hub: Hub, oneshui_on: CommandProcess, tmp_path: Path) -> None:
    write_stand_ins(tmp_path)
    hub.repos.pop("USER/NAME", None)
    run_commands(ROOT / "README.md", oneshui_on, tmp_path)
    assert (tmp_path / "runs" / "celeba-seed0-forget-keys" / "model.safetensors").is_file()
    assert "model.safetensors" in hub.files("USER/NAME")
