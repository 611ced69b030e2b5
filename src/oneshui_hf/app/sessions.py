"""What each visitor has on the page: in memory, by the number of the session, and gone when the tab is closed."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from .forgetting import Forgotten
from .photos import Photo

MOST = 32  # sessions that are kept; the one that was used least recently goes first
IDLE = 1800.0  # seconds after which an unused session is forgotten


@dataclass
class Session:
    """What one visitor has on the page.

    Attributes:
        photo: Their photo.
        forgotten: The request that was applied last.
        examples: How many generated photos were shown.
        used: When the session was used last.
    """

    photo: Photo | None = None
    forgotten: Forgotten | None = None
    examples: int = 0
    used: float = 0.0


class Sessions:
    """The sessions of all visitors. Who does not know the number of a session, a long random one, does not reach it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start without sessions.

        Args:
            clock: Returns the time.
        """
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock, self._clock = threading.Lock(), clock

    def of(self, number: str | None) -> Session:
        """Return the session of a number, a new one at first. Without a number it is not kept."""
        with self._lock:
            self._drop_idle()
            session = self._sessions.pop(number, None) if number else None
            session = session or Session()
            session.used = self._clock()
            if number:
                self._sessions[number] = session
            while len(self._sessions) > MOST:
                self._sessions.popitem(last=False)
            return session

    def drop(self, number: str | None) -> None:
        """Forget a session: its tab was closed."""
        with self._lock:
            self._sessions.pop(number or "", None)

    def _drop_idle(self) -> None:
        limit = self._clock() - IDLE
        for number in [number for number, session in self._sessions.items() if session.used < limit]:
            del self._sessions[number]

    def __len__(self) -> int:
        return len(self._sessions)
