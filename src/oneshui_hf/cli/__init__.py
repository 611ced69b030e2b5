"""The command line: options in, one stage called, result printed. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys

INTERRUPTED = 130  # the exit code of a command that Ctrl-C ended


def main() -> None:
    """Run the command line. Ctrl-C ends it without a traceback, also while it starts or ends."""
    code = INTERRUPTED
    try:
        from ..imports import exit_without_collection, heavy_imports

        exit_without_collection()
        with heavy_imports():
            from .app import run

        code = run()
    except KeyboardInterrupt:
        pass
    sys.exit(code)
