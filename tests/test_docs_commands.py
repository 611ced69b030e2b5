"""The commands of README, tutorial and guides, run as they are written on generated people; their output is compared in shape.

Commands on data that cannot be had here (CelebA, the Hub) are read by the command line in `test_docs.py`, and not run.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from oneshui_hf.data.builders.synthetic import PERSONAL, SEEN, Person
from support.pages import DOCS, ROOT, Block, Command, blocks, commands, shape

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
    is_error = any(line.startswith("Error:") for line in command.output)
    assert (done.returncode != 0) == is_error, f"{command.words}\n{done.stdout}\n{done.stderr}"
    printed = iter([shape(line) for line in (done.stdout + done.stderr).splitlines()])
    for line in map(shape, command.output):
        assert line in printed, f"{command.words} does not print, after what comes before: {line}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def after_tutorial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the tutorial was run."""
    folder = tmp_path_factory.mktemp("tutorial")
    run_page(DOCS / "tutorial.md", folder)
    return folder


def test_tutorial(after_tutorial: Path) -> None:
    assert (after_tutorial / "demo" / "forgotten" / "model.safetensors").is_file()
    assert (after_tutorial / "demo" / "original-forget-keys" / "report.html").is_file()


def test_figure_of_the_readme(after_tutorial: Path) -> None:
    run(Command(f"python {DOCS / 'demo_figure.py'} demo demo.svg", ()), after_tutorial)
    new, published = ((folder / "demo.svg").read_text() for folder in (after_tutorial, DOCS / "images"))
    assert shape(new).count("<") == shape(published).count("<")  # the same elements


def test_own_method(after_tutorial: Path) -> None:
    run_page(DOCS / "guides" / "own-method.md", after_tutorial)
    assert (after_tutorial / "benchmarks" / "mine" / "report.html").is_file()
    for name in ("head_ascent.py", "pyproject.toml"):
        assert (after_tutorial / name).read_text() == (ROOT / "plugins" / "example" / name).read_text()


def test_own_photos(tmp_path: Path) -> None:
    write_photos(tmp_path)
    run_page(DOCS / "guides" / "your-photos.md", tmp_path)
    assert (tmp_path / "runs" / "without-p03" / "model.safetensors").is_file()


def write_photos(folder: Path, people: int = 30, photos: int = 8) -> None:
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
