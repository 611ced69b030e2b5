"""The commands of README, tutorial and guides, run as they are written on generated people; their output is compared in shape.

CelebA and the Hub are replaced by stand-ins: generated people in CelebA's layout, a Hub on the loopback interface, and on it a small model
under the name of the default backbone. The words of each command stay as they are.
"""

from __future__ import annotations

import csv
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

import numpy as np
import pytest

from oneshui_hf.data.builders.synthetic import PERSONAL, SEEN, Person
from oneshui_hf.stages.command_options import DEFAULT_MODEL
from support.celeba_layout import SIZE, small_backbone, write_celeba, write_celebahq, write_mufac
from support.command_process import CommandProcess, hub_environment
from support.faces import portrait, write_photos
from support.hub_server import Hub
from support.pages import DOCS, ROOT, Block, Command, blocks, commands, console_commands, shape
from support.served import ask, require_gradio, served

pytestmark = pytest.mark.slow
HERE = "pip install --quiet --no-deps --no-build-isolation --target site ."  # stands for `pip install .`, which would change the tests' own


def run_page(page: Path, folder: Path) -> None:
    """Run the blocks of a page in their order: console commands, Python, and files, each of which the text before it names."""
    for block in blocks(page):
        if block.file:
            (folder / block.file).write_text(block.text + "\n", encoding="utf-8")
        elif block.language == "python":
            run_python(block, folder)
        elif block.language == "console":
            for command in commands(block):
                run(command, folder)


def run_python(block: Block, folder: Path) -> None:
    """Run a block of Python in a process of its own."""
    (folder / "block.py").write_text(block.text, encoding="utf-8")
    run(Command("python block.py", ()), folder)


def run(command: Command, folder: Path) -> None:
    """Run a command; the lines that the page shows have to be among its output, in their order."""
    words = HERE if command.words.strip() == "pip install ." else command.words
    places = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = os.environ | {"PATH": places, "PYTHONPATH": str(folder / "site"), "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(["bash", "-c", words], cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
    compare(command, done.returncode, done.stdout + done.stderr)


def compare(command: Command, code: int, text: str) -> None:
    """Check the exit code of a command, and that the lines that the page shows are among its output, in their order."""
    is_error = any(line.startswith("Error:") for line in command.output)
    assert (code != 0) == is_error, f"{command.words}\n{text}"
    printed = iter([shape(line) for line in text.splitlines()])
    for line in map(shape, command.output):
        assert line in printed, f"{command.words} does not print, after what comes before: {line}\n{text}"


@pytest.fixture(scope="module")
def after_tutorial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the tutorial was run."""
    folder = tmp_path_factory.mktemp("tutorial")
    run_page(DOCS / "tutorial.md", folder)
    return folder


def test_tutorial(after_tutorial: Path) -> None:
    assert (after_tutorial / "demo" / "forgotten" / "model.safetensors").is_file()
    assert (after_tutorial / "demo" / "original-forget-keys" / "report.html").is_file()


def test_demo_shows_memorisation_and_unlearning(after_tutorial: Path) -> None:
    demo = after_tutorial / "demo"
    runs = {"original": "original", **{name: f"original-{name}" for name in ("oracle", "forget-keys", "gradient-ascent", "metaunlearn")}}
    rows = {name: json.loads((demo / run / "metrics.json").read_text()) for name, run in runs.items()}
    original, oracle = rows["original"], rows["oracle"]
    assert original["forget"]["map"] > original["test"]["map"] + 15  # it has memorised the forget set
    assert oracle["forget"]["map"] < original["forget"]["map"] - 15  # to the oracle they are unseen identities
    assert abs(oracle["retain"]["map"] - original["retain"]["map"]) < 5
    assert original["gap_closure"] == 0  # the row of doing nothing
    assert oracle["gap_closure"] == 1
    for method in ("gradient-ascent", "metaunlearn"):
        assert rows[method]["forget"]["loss"] > original["forget"]["loss"]
        assert rows[method]["retain"]["map"] > original["retain"]["map"] - 15
        assert rows["forget-keys"]["gap_closure"] > rows[method]["gap_closure"]
    assert rows["forget-keys"]["retain"]["map"] > original["retain"]["map"] - 2


def test_second_demo_in_the_same_folder_is_refused(after_tutorial: Path) -> None:
    again = subprocess.run([sys.executable, "-m", "oneshui_hf", "demo"], cwd=after_tutorial, capture_output=True, text=True)
    assert (again.returncode, "earlier demo" in again.stderr) == (2, True)


def test_figure_of_the_readme(after_tutorial: Path) -> None:
    run(Command(f"python {DOCS / 'demo_figure.py'} demo demo.svg", ()), after_tutorial)
    new, published = ((folder / "demo.svg").read_text() for folder in (after_tutorial, DOCS / "images"))
    assert shape(new).count("<") == shape(published).count("<")  # the same elements


def test_own_method(after_tutorial: Path) -> None:
    run_page(DOCS / "guides" / "own-method.md", after_tutorial)
    assert (after_tutorial / "benchmarks" / "mine" / "report.html").is_file()
    for name in ("head_ascent.py", "pyproject.toml"):
        assert (after_tutorial / name).read_text() == (ROOT / "plugins" / "example" / name).read_text()


def test_auditing(after_tutorial: Path, tmp_path: Path) -> None:
    shutil.copytree(after_tutorial / "demo", tmp_path / "demo")
    for name, run_folder in (("ORIGINAL", "original"), ("UNLEARNED", "forgotten")):
        shutil.copytree(tmp_path / "demo" / run_folder, tmp_path / name)
    (tmp_path / "FOLDER").mkdir()
    write_photos(tmp_path / "FOLDER", people=8, photos=2, name_of="person{}".format)
    run_page(DOCS / "guides" / "auditing.md", tmp_path)


def test_own_photos(tmp_path: Path) -> None:
    write_own_photos(tmp_path)
    run_page(DOCS / "guides" / "your-photos.md", tmp_path)
    assert (tmp_path / "runs" / "without-p03" / "model.safetensors").is_file()


def write_own_photos(folder: Path, people: int = 30, photos: int = 8) -> None:
    """Write `photos/` with a metadata.csv, as a user has them, and `face.png`, a further photo of the person p03."""
    rows = []
    for number in range(people):
        person = Person.draw(np.random.default_rng([0, number]))
        for photo in range(photos + 1):
            image, seen = person.photo(np.random.default_rng([0, number, photo + 1]))
            if photo < photos:
                name = f"p{number:02d}/{photo}.png"
                (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
                image.save(folder / "photos" / name)
                rows.append([name, f"p{number:02d}", *map(int, seen), *map(int, person.traits)])
            elif number == 3:
                image.save(folder / "face.png")
    with (folder / "photos" / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file_name", "identity", *SEEN, *PERSONAL], *rows])


def test_python_of_the_readme(tmp_path: Path) -> None:
    for block in blocks(ROOT / "README.md"):
        if block.language == "python":
            run_python(block, tmp_path)
    assert (tmp_path / "runs" / "synthetic-seed0-forget-keys" / "metrics.json").is_file()


# CelebA and the Hub

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
    """Run a call of `oneshui`, as `run` does."""
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


def test_app(hub: Hub, oneshui_on: CommandProcess, after_tutorial: Path, after_celeba: Path, tmp_path: Path) -> None:
    require_gradio()
    shutil.copytree(after_tutorial / "demo", tmp_path / "demo")
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
