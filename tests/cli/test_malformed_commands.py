"""Wrong command lines from a seed: each ends with one sentence, and nothing is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.all_commands import COMMANDS
from support.commands import Oneshui
from support.malformed_commands import faults, malformed_commands


@pytest.mark.parametrize(
    ("seed", "count"), [(0, 60), pytest.param(1, 300, marks=pytest.mark.slow), pytest.param(2, 300, marks=pytest.mark.slow)]
)
def test_malformed_commands_end_with_one_sentence(
    oneshui: Oneshui, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, count: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONESHUI_CACHE", str(tmp_path / "folder"))
    commands = list(malformed_commands(seed, count, tmp_path))
    before = _contents(tmp_path)
    wrong = []
    for words in commands:
        code, _, err = oneshui(*words)
        found = faults(code, err)
        if (after := _contents(tmp_path)) != before:
            found.append(f"written: {sorted(after ^ before)}")
            before = after
        if found:
            wrong.append((words, code, err, found))
    assert not wrong


def _contents(folder: Path) -> set[tuple[str, int]]:
    """Return the names in a folder, and when each file was changed. A lock changes the time of its folder."""
    return {(str(path.relative_to(folder)), 0 if path.is_dir() else path.lstat().st_mtime_ns) for path in folder.rglob("*")}


def test_the_same_seed_gives_the_same_command_lines_for_every_command(tmp_path: Path) -> None:
    made = []
    for name, count in (("a", 300), ("b", 400)):
        (tmp_path / name).mkdir()
        words = malformed_commands(3, count, tmp_path / name)
        made.append([[word.replace(str(tmp_path / name), "") for word in line] for line in words])
    assert made[0] == made[1][:300]
    assert len({tuple(line) for line in made[1]}) > 350
    starts = {" ".join(line[:2]) for line in made[1]} | {line[0] for line in made[1] if line}
    assert {command.path for command in COMMANDS} <= starts


@pytest.mark.parametrize(
    ("code", "err", "found"),
    [
        (0, "", []),
        (2, "Error: x.\n", []),
        (3, "Error: x.\n", ["exit code 3"]),
        (1, "", ["0 error messages with exit code 1"]),
        (0, "Error: x.\n", ["1 error messages with exit code 0"]),
        (1, "Error: x.\nError: y.\n", ["2 error messages with exit code 1"]),
        (1, "Traceback (most recent call last):\nError: x.\n", ["a traceback"]),
        (1, f"Error: {'x' * 600}\n", ["a long message"]),
        (1, "Error: \x1b[0m\u202e\n", ["unescaped characters: '\\x1b\\u202e'"]),
    ],
)
def test_every_fault_is_found(code: int, err: str, found: list[str]) -> None:
    assert faults(code, err) == found


def test_files_of_the_command_lines_cannot_be_used(tmp_path: Path) -> None:
    next(malformed_commands(0, 1, tmp_path))
    assert not list(tmp_path.glob("run/*.safetensors"))
    assert (tmp_path / "fifo").is_fifo()
    assert os.readlink(tmp_path / "loop") == str(tmp_path / "loop")  # noqa: PTH115
