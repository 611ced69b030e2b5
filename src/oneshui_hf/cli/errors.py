"""Failures as one sentence on stderr and an exit code: 2 for usage, 1 for failure, 130 for Ctrl-C."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import OneshuiError, did_you_mean, is_disk_full
from ..reporting import is_main_process
from .printing import escape_unprintable

if TYPE_CHECKING:
    import typer


class StoppedError(OneshuiError):
    """The user pressed Ctrl-C. Typer would swallow the interrupt silently, so commands raise this."""

    exit_code = 130


DISK_FULL = "There is no space left on the device; nothing half-written was left behind. Free some and run again"


def guarded(call: Callable[[], object]) -> int:
    """Run the command line and return its exit code."""
    import typer

    escape_unprintable()
    try:
        result = call()
    except OneshuiError as error:
        return _print_error(str(error), error.exit_code)
    except typer.TyperException as error:
        return _print_error(_usage_sentence(error), getattr(error, "exit_code", 2))
    except PermissionError as error:
        return _print_error(f"There is no permission to write or read {error.filename}.", 1)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        what = DISK_FULL if is_disk_full(error) else f"The file system reports: {error.strerror or error}"
        return _print_error(f"{what}{where}.", 1)
    except Exception as error:
        if is_disk_full(error):
            return _print_error(f"{DISK_FULL}.", 1)
        raise
    return result if isinstance(result, int) else 0


def _usage_sentence(error: typer.TyperException) -> str:
    """Return what is wrong with a command line, in the words that `options` uses for a value."""
    context = getattr(error, "ctx", None)
    command = _command_words(context)
    kind, text = type(error).__name__, error.format_message()
    if kind == "NoSuchOption" and context is not None:
        known = [spelling for parameter in context.command.params for spelling in (*parameter.opts, *parameter.secondary_opts)]
        return f"{command} has no option {error.option_name}.{did_you_mean(error.option_name, known)}"  # type: ignore[attr-defined]
    if kind == "BadOptionUsage" and "does not take a value" in text:
        return f"{error.option_name} takes no value; omit the part after '='."  # type: ignore[attr-defined]
    if kind == "BadOptionUsage":
        return f"{error.option_name} needs a value."  # type: ignore[attr-defined]
    if kind == "MissingParameter" and context is not None:
        return f"{command} needs {error.param.name.upper()}; see `{command} --help`."  # type: ignore[attr-defined]
    if extra := re.fullmatch(r"Got unexpected extra argument(?:\(s\)|s)? \((.*)\)", text):
        return f"{command} takes no argument '{extra[1]}'; see `{command} --help`."
    return text


def _command_words(context: Any) -> str:
    """Return the words that call a command, with the program's usual name."""
    words: list[str] = []
    while context is not None and context.parent is not None:
        words.insert(0, context.info_name or "")
        context = context.parent
    return " ".join(["oneshui", *words])


def _print_error(message: str, code: int) -> int:
    if is_main_process():
        print(f"Error: {message}", file=sys.stderr)
    return code
