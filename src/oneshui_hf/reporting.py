"""What a stage may tell its caller while it works. The CLI shows it; a Python caller hears nothing unless it asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Reporter:
    """The silent reporter. Subclasses show what they are told."""

    def info(self, message: str) -> None:
        """Tell one line about what is being done."""

    def note(self, message: str) -> None:
        """Tell one line that the user should see even in a log: what was chosen for them."""

    def warn(self, message: str) -> None:
        """Tell one line that the user should not miss: what may be wrong."""

    def confirm(self, question: str) -> bool:
        """Put a yes-or-no question to whoever is there; no where nobody can answer."""
        del question
        return False

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield the items, showing how far the work is."""
        del label, total
        yield from items


class PrefixedReporter(Reporter):
    """Passes on what it is told, warnings with a label in front, where one of many jobs has them."""

    def __init__(self, reporter: Reporter, label: str) -> None:
        self._reporter, self._label = reporter, label

    def info(self, message: str) -> None:
        """Pass on a line."""
        self._reporter.info(message)

    def note(self, message: str) -> None:
        """Pass on a line that should be seen."""
        self._reporter.note(message)

    def warn(self, message: str) -> None:
        """Pass on a line that should not be missed, and say what it is about."""
        self._reporter.warn(f"{self._label}: {message}")

    def confirm(self, question: str) -> bool:
        """Pass on a question."""
        return self._reporter.confirm(question)

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield the items, showing how far the work is."""
        yield from self._reporter.track(items, label, total)


SILENT = Reporter()
