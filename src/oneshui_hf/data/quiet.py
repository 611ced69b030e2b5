"""Silences the log messages and progress bars of `datasets` and `transformers`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet(library_logging: Any, verbosity: int | None = None) -> Iterator[None]:
    """Disable a library's progress bars inside the block, and restore its settings afterwards.

    Args:
        library_logging: `datasets.utils.logging` or `transformers.utils.logging`.
        verbosity: The lowest level of its log messages inside the block; unchanged by default.
    """
    level, bars = library_logging.get_verbosity(), library_logging.is_progress_bar_enabled()
    library_logging.disable_progress_bar()
    if verbosity is not None:
        library_logging.set_verbosity(verbosity)
    try:
        yield
    finally:
        library_logging.set_verbosity(level)
        if bars:
            library_logging.enable_progress_bar()
