"""Failures as one sentence on stderr and an exit code: 2 for usage, 1 for failure, 128 + N for signal N (130 for Ctrl-C)."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import OneshuiError, describe_os_error, did_you_mean, find_os_error
from ..printable import printable, shorten
from ..reporting import is_main_process
from . import INTERRUPTED
from .printing import escape_unencodable, print_traceback

if TYPE_CHECKING:
    from types import FrameType

    import typer

MAX_MESSAGE = 560  # characters of an error message
FINAL_SIGNALS = ("SIGTERM", "SIGHUP")  # from a scheduler, and when the terminal is closed


class StoppedError(OneshuiError):
    """The user pressed Ctrl-C, or the process was asked to end. Typer would end silently, so commands raise this."""

    def __init__(self, kept: str, code: int) -> None:
        super().__init__(f"Stopped; {kept}.")
        self.exit_code = code


class SignalReceived(KeyboardInterrupt):
    """The process was asked to end by a signal.

    Attributes:
        code: The exit code.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """Return the exit code of an interrupted command."""
    return interrupt.code if isinstance(interrupt, SignalReceived) else INTERRUPTED


def prepare_process() -> None:
    """Open standard streams that are closed, and end the command in order, as Ctrl-C does, when a signal asks for it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the next file that is opened would otherwise receive what is printed
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123
    sys.excepthook = print_traceback
    own = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() == own:
            raise SignalReceived(number)
        signal.signal(number, signal.SIG_DFL)  # in a worker process, which has nothing to end in order
        os.kill(os.getpid(), number)

    for name in FINAL_SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # `nohup` ignores SIGHUP
            signal.signal(number, stop)


def guarded(call: Callable[[], object]) -> int:
    """Run the command line and return its exit code."""
    import typer

    escape_unencodable()
    try:
        result = call()
        sys.stdout.flush()
    except OneshuiError as error:
        return _print_error(str(error), error.exit_code)
    except typer.TyperException as error:
        return _print_error(_usage_sentence(error), getattr(error, "exit_code", 2))
    except KeyboardInterrupt as interrupt:
        return _print_error("Stopped.", exit_code(interrupt))
    except Exception as error:
        found = find_os_error(error)
        if found is None:
            raise
        if found.errno == errno.EPIPE and not _is_open(sys.stdout):  # the reader of a pipe, such as `head`, has ended
            return 1
        return _print_error(describe_os_error(found), 1)
    if result == INTERRUPTED:  # Typer has caught it, outside of a command
        return _print_error("Stopped.", INTERRUPTED)
    return result if isinstance(result, int) else 0


def _is_open(stream: Any) -> bool:
    """Whether what was printed can be written; otherwise the stream is discarded, so that Python does not report it again at its end."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True


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
    if extra := re.fullmatch(r"Got unexpected extra argument(?:\(s\)|s)? \((.*)\)", text, re.DOTALL):
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
        with contextlib.suppress(BrokenPipeError):
            print(f"Error: {shorten(printable(message), MAX_MESSAGE)}", file=sys.stderr)
    return code
