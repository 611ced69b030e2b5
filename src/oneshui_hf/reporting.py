"""How a stage reports progress to its caller: silently, on a terminal, or in a notebook."""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from .printable import printable
from .progress import LINE_INTERVAL, Clock, Entry, Interval, TrainingProgress, WorkProgress

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

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

    @contextlib.contextmanager
    def training(self, epochs: int, steps: int, first: int = 0) -> Iterator[TrainingProgress]:
        """Yield an object that counts the steps and epochs of a training. Each epoch is reported in a line.

        Args:
            epochs: Number of epochs.
            steps: Steps per epoch.
            first: Steps that were done before an interruption.
        """
        progress = TrainingProgress(epochs, steps, first, time.monotonic)
        progress.listeners.append(lambda progress, entry: None if entry is None else self.info(str(progress)))
        yield progress

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Report numbers of a step, for trackers. No personal data.

        Args:
            values: Finite numbers; each name consists of lower-case letters, digits, `-`, `_` and `/`.
            step: The step, which increases.
        """
        del values, step

    @property
    def draws_bars(self) -> bool:
        """Whether a library that draws progress bars of its own may do so now."""
        return False


class ForwardingReporter(Reporter):
    """Forwards everything to another reporter. Subclasses change a part of it."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def info(self, message: str) -> None:
        """Forward a line."""
        self._reporter.info(message)

    def note(self, message: str) -> None:
        """Forward a note."""
        self._reporter.note(message)

    def warn(self, message: str) -> None:
        """Forward a warning."""
        self._reporter.warn(message)

    def confirm(self, question: str) -> bool:
        """Forward a question."""
        return self._reporter.confirm(question)

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield the items and report progress."""
        yield from self._reporter.track(items, label, total)

    @contextlib.contextmanager
    def training(self, epochs: int, steps: int, first: int = 0) -> Iterator[TrainingProgress]:
        """Forward a training."""
        with self._reporter.training(epochs, steps, first) as progress:
            yield progress

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Forward numbers."""
        self._reporter.metrics(values, step)

    @property
    def draws_bars(self) -> bool:
        """Whether a library may draw progress bars of its own."""
        return self._reporter.draws_bars


class PrefixedReporter(ForwardingReporter):
    """Puts a label before each warning, for one of many jobs."""

    def __init__(self, reporter: Reporter, label: str) -> None:
        super().__init__(reporter)
        self._label = label

    def warn(self, message: str) -> None:
        """Forward a warning with the label."""
        super().warn(f"{self._label}: {message}")


class ConsoleReporter(Reporter):
    """Prints to stderr, from the main process only.

    Where a bar can be drawn, work is shown as a bar. Lines are then printed through its console, which moves the bar below them. All
    reporters of a process share the bar. Elsewhere, such as in the log of a batch system, progress is a line at most every 30 seconds, and
    one after each epoch of a training.
    """

    _bar: Progress | None = None  # of the class, since a terminal can show one

    def __init__(self, *, quiet: bool = False, clock: Clock = time.monotonic) -> None:
        """Prepare the console.

        Args:
            quiet: Print warnings only.
            clock: Returns the time, for rates and for the lines without a terminal.
        """
        self._clock, self._lines, self._nested = clock, Interval(LINE_INTERVAL, clock), 0
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

    @property
    def draws_bars(self) -> bool:
        """Whether this process prints, a bar can be drawn, and none is drawn yet."""
        return self._main and not self._quiet and self._interactive and can_draw_bars() and ConsoleReporter._bar is None

    @property
    def _prints_lines(self) -> bool:
        """Whether progress appears as lines, since no bar can be drawn."""
        return self._main and not self._quiet and not (self._interactive and can_draw_bars())

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield the items under a progress bar, or print lines. A bar inside another bar is not shown."""
        if self.draws_bars:
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            with self._drawn(columns) as bar:
                yield from bar.track(items, total=total, description=printable(label))
        elif self._prints_lines:
            work = WorkProgress(label, operator.length_hint(items) if total is None else total, self._clock)
            with self._inside():
                for item in items:
                    yield item
                    work.done += 1
                    if self._lines.has_passed():
                        self._print(str(work), "")
        else:
            yield from items

    @contextlib.contextmanager
    def training(self, epochs: int, steps: int, first: int = 0) -> Iterator[TrainingProgress]:
        """Show one bar for all epochs, or print a line after each epoch and at most every 30 seconds in between.

        Inside other work, a line after an epoch, too, is printed at most every 30 seconds.
        """
        progress = TrainingProgress(epochs, steps, first, self._clock)
        if self.draws_bars:
            from rich.progress import BarColumn, TextColumn

            with self._drawn((BarColumn(), TextColumn("{task.description}", markup=False))) as bar:
                task, redraw = bar.add_task(str(progress), total=progress.total, completed=first), Interval(0.5, self._clock)

                def draw(progress: TrainingProgress, entry: Entry | None) -> None:
                    if entry is not None or redraw.has_passed():
                        bar.update(task, completed=progress.done, description=str(progress))
                    if entry is not None:
                        self.info(str(progress))

                progress.listeners.append(draw)
                yield progress
        else:
            progress.listeners.append(self._print_training)
            with self._inside():
                yield progress

    def _print_training(self, progress: TrainingProgress, entry: Entry | None) -> None:
        if not self._prints_lines:  # inside a bar
            if entry is not None:
                self.info(str(progress))
        elif self._lines.has_passed() or (entry is not None and self._nested == 1):
            self._lines.restart()
            self._print(str(progress), "")

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """Count how deep this is inside tracked work."""
        self._nested += 1
        try:
            yield
        finally:
            self._nested -= 1

    @contextlib.contextmanager
    def _drawn(self, columns: Sequence[ProgressColumn]) -> Iterator[Progress]:
        """Draw a bar until the block ends."""
        from rich.console import Console
        from rich.progress import Progress

        bar = Progress(*columns, console=Console(stderr=True), transient=True)
        ConsoleReporter._bar = bar
        stderr = sys.stderr
        try:
            with bar, _redirected_logs(stderr):
                yield bar
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
