"""Signals that ask a long job to end: they are answered between two units of work, once its state is saved.

    with deferred_stop(accelerator) as stop:
        for unit in work:
            ...
            if stop.requested():
                save()
                stop.end()

A second signal is answered at once. Outside of the block, and in other threads than the main one, signals act as usual.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from types import FrameType

    from accelerate import Accelerator

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, a scheduler, and the end of the terminal


class StopRequest:
    """Whether a signal has asked this launch to end.

    Args:
        accelerator: The processes of the launch; they stop after the same unit of work.
    """

    def __init__(self, accelerator: Accelerator | None) -> None:
        self._accelerator = accelerator
        self._received = 0
        self._agreed: Any = None  # of the call before, on the device
        self._handlers: dict[int, Any] = {}

    def requested(self) -> bool:
        """Whether to save and end. All processes call it after each unit of work, and all get the same answer.

        With several processes it is the answer to the call before: its exchange is then complete, and no process has to wait for it.
        """
        if self._accelerator is None or self._accelerator.num_processes == 1:
            return bool(self._received)
        import torch

        answer = self._agreed
        received = torch.zeros(self._accelerator.num_processes, device=self._accelerator.device)
        received[self._accelerator.process_index] = self._received
        self._agreed = self._accelerator.reduce(received, reduction="sum")
        self._received = max(self._received, 0 if answer is None else int(answer.max()))
        return answer is not None and bool(answer.any())

    def end(self) -> NoReturn:
        """End this process as the signal would have ended it.

        Raises:
            KeyboardInterrupt: For Ctrl-C, and for every signal on the command line. Otherwise the signal's own action ends the process.
        """
        self._restore()
        signal.raise_signal(self._received or signal.SIGINT)
        raise KeyboardInterrupt  # the signal is ignored here, and was sent to another process of the launch

    def _defer(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # `nohup` ignores SIGHUP
                self._handlers[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            self._restore()
            signal.raise_signal(number)
        self._received = number

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


@contextlib.contextmanager
def deferred_stop(accelerator: Accelerator | None = None) -> Iterator[StopRequest]:
    """Note the signals that ask this process to end, until the block ends; see the module.

    A signal that arrived after the last question acts when the block ends without an error.
    """
    stop = StopRequest(accelerator)
    stop._defer()
    try:
        yield stop
    finally:
        stop._restore()
    if stop._received:
        stop.end()
