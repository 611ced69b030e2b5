"""The two kinds of error that a user sees. Each message is one sentence."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class OneshuiError(Exception):
    """An operation failed. The message states what is wrong, where, and what to do.

    Attributes:
        location: The file and line that the message starts with, if it names one.
    """

    exit_code = 1

    def __init__(self, message: str = "", *, location: str | None = None) -> None:
        super().__init__(message)
        self.location = location


class UsageError(OneshuiError):
    """The command or call is wrong: an unknown name, a missing option, an output path that exists."""

    exit_code = 2


def is_disk_full(error: BaseException) -> bool:
    """Whether an error reports that no disk space is left."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors wraps file system errors in its own class
    return type(error).__name__ == "SafetensorError" and f"os error {errno.ENOSPC}" in str(error)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if the message is empty."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the closest known word, or an empty string if none is close."""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.55)
    return f" Did you mean '{close[0]}'?" if close else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the closest known word, or a list of all known words if none is close."""
    names = sorted(known)
    return nearest(word, names) or (f" Known: {', '.join(names)}." if names else "")
