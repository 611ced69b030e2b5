"""Running a command in this process, and the format of its error message."""

from __future__ import annotations

from collections.abc import Callable

Oneshui = Callable[..., tuple[int, str, str]]


def sentence(err: str) -> str:
    """Return the line of an error message, and check its format."""
    before = ("Using the newest", "epoch ", "  ")  # and a warning that the portrait of a test is none
    lines = [line for line in err.strip().splitlines() if not line.startswith(before) and " is unlike all photos " not in line]
    assert "Traceback" not in err
    assert lines[0].startswith("Error: ")
    return lines[0]
