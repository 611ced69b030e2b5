"""What is shown, and where: results on stdout, all else on stderr, from the main process only, bars on a terminal only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from ..reporting import Reporter

T = TypeVar("T")


def is_main_process() -> bool:
    """Whether this is the process that speaks. Read from the launcher's variables, since torch may not be loaded yet."""
    return int(os.environ.get("RANK", "0") or 0) == 0


class ConsoleReporter(Reporter):
    """Shows what a stage tells on stderr."""

    def __init__(self) -> None:
        self._main = is_main_process()
        self._terminal = sys.stderr.isatty()
        self._tracking = False
        self._noted: set[str] = set()

    def info(self, message: str) -> None:
        """Show progress in words, on a terminal."""
        if self._main and self._terminal:
            self._print(message, "dim")

    def note(self, message: str) -> None:
        """Show what was chosen for the user; once, where a command comes to it several times."""
        if self._main and message not in self._noted:
            self._noted.add(message)
            self._print(message, "")

    def warn(self, message: str) -> None:
        """Show what may be wrong."""
        if self._main:
            self._print(f"Warning: {message}", "yellow")

    def confirm(self, question: str) -> bool:
        """Ask on stderr and read the answer from stdin, where both are a terminal; no elsewhere, and in all processes but the main one."""
        if not (self._main and self._terminal and sys.stdin.isatty()):
            return False
        import typer

        try:
            return typer.confirm(question, err=True)
        except typer.Abort:  # Ctrl-C, or the end of the input
            raise KeyboardInterrupt from None

    def _print(self, message: str, style: str) -> None:
        from rich.console import Console

        Console(stderr=True, highlight=False, soft_wrap=True).print(message, style=style, markup=False)

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield the items under a progress bar, on a terminal; a bar within a bar is left out."""
        if not self._main or not self._terminal or self._tracking:
            yield from items
            return
        from rich.console import Console
        from rich.progress import track

        self._tracking = True
        try:
            yield from track(items, label, total=total, console=Console(stderr=True), transient=True)
        finally:
            self._tracking = False
