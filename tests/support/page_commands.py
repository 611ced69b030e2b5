"""Runs the blocks of a page of the documentation as they are written, and compares what they print in shape."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .pages import Block, Command, blocks, commands, shape

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
