"""A stream that claims to be a terminal."""

from __future__ import annotations

from typing import Any


class Terminal:
    """Forwards to another stream and claims to be a terminal."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def isatty(self) -> bool:
        """Whether this is a terminal: it says so."""
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
