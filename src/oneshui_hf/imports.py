"""Faster imports of large packages: without the cyclic garbage collector, which finds nothing in them."""

from __future__ import annotations

import atexit
import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def heavy_imports() -> Iterator[None]:
    """Pause the cyclic garbage collector for a block that imports large packages.

    Importing torch and transformers creates very many objects and hardly any garbage. The collector traverses them again and again while
    they grow in number, which takes about a sixth of the time of the import.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # the caller may have frozen objects of its own
            gc.freeze()
            gc.unfreeze()  # together: all objects become old without being traversed
        gc.enable()


def exit_without_collection() -> None:
    """Let this process end without traversing all its objects for garbage, whose memory the operating system takes back at once."""
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
