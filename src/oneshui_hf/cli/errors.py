"""The one place where a failure becomes a sentence on stderr and an exit code: 2 for usage, 1 for failure, 130 for Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ..errors import OneshuiError, is_disk_full
from .console import is_main_process


class StoppedError(OneshuiError):
    """The user pressed Ctrl-C. Typer would swallow the interrupt without a word, so commands turn it into this."""

    exit_code = 130


DISK_FULL = "There is no space left on the device; nothing half-written was left behind. Free some and run again"


def guarded(call: Callable[[], object]) -> int:
    """Run the command line and return its exit code."""
    import typer

    try:
        result = call()
    except OneshuiError as error:
        return _tell(str(error), error.exit_code)
    except typer.TyperException as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        return _tell(message, getattr(error, "exit_code", 2))
    except PermissionError as error:
        return _tell(f"There is no permission to write or read {error.filename}.", 1)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        what = DISK_FULL if is_disk_full(error) else f"The file system says: {error.strerror or error}"
        return _tell(f"{what}{where}.", 1)
    except Exception as error:
        if is_disk_full(error):
            return _tell(f"{DISK_FULL}.", 1)
        raise
    return result if isinstance(result, int) else 0


def _tell(message: str, code: int) -> int:
    if is_main_process():
        print(f"Error: {message}", file=sys.stderr)
    return code
