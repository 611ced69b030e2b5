"""What handlers report: the command line's sentences, collected instead of printed."""

from __future__ import annotations

from ..errors import OneshuiError, describe_os_error, find_os_error
from ..reporting import Reporter


class CollectingReporter(Reporter):
    """Keeps notes and warnings of one action. Questions are not asked: who is on a photo that is not certain is named on the page.

    Attributes:
        sentences: Notes and warnings, in their order.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.sentences: list[str] = []

    def note(self, message: str) -> None:
        """Keep a note, once."""
        if message not in self.sentences:
            self.sentences.append(message)

    def warn(self, message: str) -> None:
        """Keep a warning, once."""
        self.note(message)


def error_sentence(error: Exception) -> str | None:
    """Return an error as the command line prints it; None if it is a bug."""
    if isinstance(error, OneshuiError):
        return str(error)
    found = find_os_error(error)
    return None if found is None else describe_os_error(found, "try again")
