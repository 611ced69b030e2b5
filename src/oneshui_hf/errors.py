"""The two kinds of error that a user sees. Each message is one sentence."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable

MAX_LINE = 200  # characters of another package's message; some contain a whole file


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


class NotResumableError(OneshuiError):
    """An interrupted training cannot be resumed; started again, it can succeed."""


MACHINE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.EBUSY),
)


def is_machine_error(error: BaseException) -> bool:
    """Whether an error concerns the machine (permissions, space, limits, a device), so that a file is not damaged because of it."""
    found = find_os_error(error)
    return found is not None and found.errno in MACHINE


def is_disk_full(error: BaseException) -> bool:
    """Whether an error reports that no disk space is left."""
    found = find_os_error(error)
    return found is not None and found.errno in (errno.ENOSPC, errno.EDQUOT)


def find_os_error(error: BaseException) -> OSError | None:
    """Return the error of the operating system that an error is, or was raised for; None if there is none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause
        # safetensors wraps such errors in its own class and keeps their number in the text only.
        if type(cause).__name__ == "SafetensorError" and (number := re.search(r"os error (\d+)", str(cause))):
            return OSError(int(number[1]), os.strerror(int(number[1])))
        cause = cause.__cause__
    return None


def describe_os_error(error: OSError, again: str = "run the command again") -> str:
    """Return an error of the operating system as one sentence: what is wrong, which file, and what to do.

    Args:
        error: The error.
        again: How to continue when there is space again, for the command that failed.
    """
    named = re.search(r"'(/[^']+)'", str(error))  # pyarrow names the file in the text only
    name = error.filename or (named[1] if named else None)
    place, file = f" ({name})" if name else "", name or "a file"
    match error.errno:
        case errno.ENOSPC:
            return f"There is no space left on the device{place}; free some, then {again}."
        case errno.EDQUOT:
            return f"Your disk quota is used up{place}; free some space, then {again}."
        case errno.EACCES | errno.EPERM:
            return f"There is no permission to read or write {file}; change its permissions, or name another place."
        case errno.EROFS:
            return f"The file system of {file} can only be read; name another place."
        case errno.ENAMETOOLONG:
            return f"The name of {file} is too long for its file system; name a shorter one."
        case errno.EMFILE | errno.ENFILE:
            return f"Too many files are open{place}; allow more with `ulimit -n`, then {again}."
        case errno.ENOMEM:
            return f"There is not enough memory{place}; free some, then {again}."
    return f"The operating system reports: {error.strerror or error}{place}."


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if the message is empty.

    A line that ends with a colon is continued by the next one, and a long one is cut.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = " ".join(part.strip() for part in lines[: 2 if lines[0].endswith(":") else 1])
    return line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}..."


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the closest known word, or an empty string if none is close."""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.55)
    return f" Did you mean '{close[0]}'?" if close else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the closest known word, or a list of all known words if none is close."""
    names = sorted(known)
    return nearest(word, names) or (f" Known: {', '.join(names)}." if names else "")
