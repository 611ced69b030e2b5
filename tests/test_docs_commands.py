"""The commands of the tutorial, and of the guides that need neither CelebA nor the Hub, run as they are written on generated people."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from oneshui_hf.data.builders.synthetic import PERSONAL, SEEN, Person
from support.faces import write_photos
from support.page_commands import run, run_page, run_python
from support.pages import DOCS, ROOT, Command, blocks, shape

pytestmark = pytest.mark.slow


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
        (tmp_path / name).mkdir()
        for file in ("config.json", "preprocessor_config.json", "model.safetensors"):  # no record: all that a stranger to the runs has
            shutil.copyfile(tmp_path / "demo" / run_folder / file, tmp_path / name / file)
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
