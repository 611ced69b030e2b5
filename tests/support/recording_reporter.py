"""A reporter that keeps what it receives."""

from __future__ import annotations

from oneshui_hf.reporting import Reporter


class RecordingReporter(Reporter):
    """Keeps warnings and notes."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.notes: list[str] = []

    def warn(self, message: str) -> None:
        """Keep a warning."""
        self.warnings.append(message)

    def note(self, message: str) -> None:
        """Keep a note."""
        self.notes.append(message)
