"""The page on a Space, or of the folder of a Space on any machine. See `stages.publishing.space`."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import NoReturn

from ..errors import OneshuiError
from ..imports import exit_without_collection
from ..reporting import ConsoleReporter
from ..runs import Run
from ..stages.app_options import AppOptions
from ..stages.publishing.space import FOLDER
from .server import serving


def serve_space(script: str) -> None:
    """Serve the page of a Space until it is stopped. Its methods need nothing but the photo, and nothing is kept.

    On the Hub, which sets SPACE_ID and decides who reaches the page, it listens on all addresses; elsewhere on this machine only.

    Args:
        script: The path of the Space's `app.py`; the model is in the folder next to it.

    Raises:
        SystemExit: With a sentence, if the model cannot be served.
    """
    reporter = ConsoleReporter()
    exit_without_collection()
    signal.signal(signal.SIGTERM, _interrupt)  # how the Hub stops a Space
    try:
        run = Run.open(Path(script).resolve().parent / FOLDER)
        with serving(run, AppOptions(), reporter, photo_alone=True, hosted="SPACE_ID" in os.environ) as address:
            reporter.note(f"The page is at {address} until it is stopped.")
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
    except OneshuiError as error:
        raise SystemExit(f"Error: {error}") from None


def _interrupt(number: int, frame: object) -> NoReturn:
    """End the page in order: what visitors sent is removed."""
    raise KeyboardInterrupt
