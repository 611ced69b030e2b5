"""How a stage reports progress to its caller: silently, on a terminal, or in a notebook."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from .printable import printable

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")


class Reporter:
    """The silent reporter. Subclasses print what they receive."""

    def info(self, message: str) -> None:
        """Report what is being done, in one line."""

    def note(self, message: str) -> None:
        """Report a choice that was made for the user, in one line that also belongs in a log."""

    def warn(self, message: str) -> None:
        """Report what may be wrong, in one line."""

    def confirm(self, question: str) -> bool:
        """Ask a yes-or-no question. The answer is no if nobody can answer."""
        del question
        return False

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield the items and report progress."""
        del label, total
        yield from items


class PrefixedReporter(Reporter):
    """Forwards to another reporter and puts a label before each warning, for one of many jobs."""

    def __init__(self, reporter: Reporter, label: str) -> None:
        self._reporter, self._label = reporter, label

    def info(self, message: str) -> None:
        """Forward a line."""
        self._reporter.info(message)

    def note(self, message: str) -> None:
        """Forward a note."""
        self._reporter.note(message)

    def warn(self, message: str) -> None:
        """Forward a warning with the label."""
        self._reporter.warn(f"{self._label}: {message}")

    def confirm(self, question: str) -> bool:
        """Forward a question."""
        return self._reporter.confirm(question)

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield the items and report progress."""
        yield from self._reporter.track(items, label, total)


class ConsoleReporter(Reporter):
    """Prints to stderr, from the main process only. Progress lines and bars appear on a terminal or in a notebook only.

    While a bar is drawn, lines are printed through its console, which moves the bar below them. All reporters of a process share the bar.
    """

    _bar: Progress | None = None  # of the class, since a terminal can show one

    def __init__(self, *, quiet: bool = False) -> None:
        """Prepare the console.

        Args:
            quiet: Print warnings only.
        """
        self._quiet = quiet
        self._main = is_main_process()
        self._interactive = is_interactive()
        self._noted: set[str] = set()

    def info(self, message: str) -> None:
        """Print what is being done, on a terminal or in a notebook."""
        if self._main and self._interactive and not self._quiet:
            self._print(message, "dim")

    def note(self, message: str) -> None:
        """Print a choice that was made for the user, once."""
        if self._main and not self._quiet and message not in self._noted:
            self._noted.add(message)
            self._print(message, "")

    def warn(self, message: str) -> None:
        """Print what may be wrong."""
        if self._main:
            self._print(f"Warning: {message}", "yellow")

    def confirm(self, question: str) -> bool:
        """Ask on stderr and read the answer from stdin. The answer is no unless both are a terminal and this is the main process."""
        if not (self._main and sys.stderr.isatty() and sys.stdin.isatty()):
            return False
        import typer

        bar = ConsoleReporter._bar
        if bar:
            bar.stop()
        try:
            return typer.confirm(printable(question), err=True)
        except typer.Abort:  # Ctrl-C, or the end of the input
            raise KeyboardInterrupt from None
        finally:
            if bar:
                bar.start()

    def _print(self, message: str, style: str) -> None:
        from rich.console import Console
        from rich.text import Text

        bar = ConsoleReporter._bar
        in_notebook = bar is not None and bar.console.is_jupyter  # there, a bar is a widget, and lines are text
        console = bar.console if bar and not in_notebook else Console(stderr=True, force_jupyter=False)
        text = Text(printable(message), style=style)  # neither brackets nor colons are markup
        console.print(text, soft_wrap=True)  # the bar keeps its style

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield the items under a progress bar. A bar inside another bar is not shown."""
        if not (self._main and self._interactive) or self._quiet or ConsoleReporter._bar or not can_draw_bars():
            yield from items
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=Console(stderr=True), transient=True)
        ConsoleReporter._bar = bar
        stderr = sys.stderr
        try:
            with bar, _redirected_logs(stderr):
                yield from bar.track(items, total=total, description=printable(label))
        finally:
            ConsoleReporter._bar = None


@contextlib.contextmanager
def _redirected_logs(stderr: object) -> Iterator[None]:
    """Send log messages of libraries through the console of the bar, which replaces `sys.stderr`.

    A library that was imported earlier keeps the stream itself, and would write into the bar.
    """
    known = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    handlers = [handler for logger in known if isinstance(logger, logging.Logger) for handler in logger.handlers]
    moved = [handler for handler in handlers if isinstance(handler, logging.StreamHandler) and handler.stream is stderr]
    for handler in moved:
        handler.stream = sys.stderr
    try:
        yield
    finally:
        for handler in moved:
            handler.stream = stderr


SILENT = Reporter()


def default_reporter() -> Reporter:
    """Return a reporter that prints on a terminal or in a notebook, and a silent one elsewhere."""
    return ConsoleReporter() if is_interactive() else SILENT


def is_main_process() -> bool:
    """Whether this process may print. It reads the launcher's variables, since torch may not be loaded yet."""
    return os.environ.get("RANK", "0").strip() in ("", "0")


def is_interactive() -> bool:
    """Whether stderr is a terminal, or this is a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def can_draw_bars() -> bool:
    """Whether a progress bar can be redrawn: on a terminal, and in a notebook that has ipywidgets."""
    from importlib.util import find_spec

    return sys.stderr.isatty() or find_spec("ipywidgets") is not None
