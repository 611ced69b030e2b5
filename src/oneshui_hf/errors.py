"""The two kinds of failure that a user sees, each told in one sentence."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class OneshuiError(Exception):
    """Something could not be done. The message says what is wrong, where, and what to do."""

    exit_code = 1


class UsageError(OneshuiError):
    """The command or call itself is at fault: an unknown name, a missing option, a path in the way."""

    exit_code = 2


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that there is no space left."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors tells of the file system's errors in its own class
    return type(error).__name__ == "SafetensorError" and f"os error {errno.ENOSPC}" in str(error)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the nearest known word; nothing where none is near."""
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.55)
    return f" Did you mean '{near[0]}'?" if near else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the nearest known word, or a list of all of them where none is near."""
    names = sorted(known)
    return nearest(word, names) or (f" Known: {', '.join(names)}." if names else "")
