"""Signals are answered between two units of work, a second one at once, and act as usual outside of the block."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch

from oneshui_hf.stop_signals import deferred_stop


class Ended(BaseException):
    pass


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Let signals raise an exception, as the command line does."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Ended(number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_for_the_end_of_the_unit(number: signal.Signals) -> None:
    done = []
    with pytest.raises(Ended) as ended, deferred_stop() as stop:
        for unit in range(5):
            if unit == 2:
                signal.raise_signal(number)
            done.append(unit)
            if stop.requested():
                stop.end()
    assert (done, ended.value.args) == ([0, 1, 2], (number,))
    with pytest.raises(Ended):
        signal.raise_signal(number)


def test_a_second_signal_acts_at_once() -> None:
    with pytest.raises(Ended) as ended, deferred_stop():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")
    assert ended.value.args == (signal.SIGINT,)


def test_a_signal_after_the_last_question_acts_at_the_end() -> None:
    finished = False
    with pytest.raises(Ended), deferred_stop():
        signal.raise_signal(signal.SIGTERM)
        finished = True
    assert finished


def test_ignored_signals_stay_ignored_and_other_threads_change_nothing() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with deferred_stop() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert not stop.requested()
    seen: list[Any] = []

    def elsewhere() -> None:
        with deferred_stop() as stop:
            seen.extend([stop.requested(), signal.getsignal(signal.SIGINT)])

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [False, before]


def test_several_processes_stop_after_the_same_unit() -> None:
    received = torch.zeros(2)  # what both processes have received
    reduced: list[torch.Tensor] = []

    def reduce(tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        reduced.append(tensor)
        return tensor + received

    accelerator: Any = SimpleNamespace(num_processes=2, process_index=0, device=torch.device("cpu"), reduce=reduce)
    with pytest.raises(Ended) as ended, deferred_stop(accelerator) as stop:
        assert not stop.requested()
        received[1] = float(signal.SIGTERM)
        answers = [stop.requested(), stop.requested()]
        stop.end()
    assert answers == [False, True]  # the exchange of one step is read at the next one
    assert ended.value.args == (signal.SIGTERM,)
    assert all(float(tensor.sum()) == 0 for tensor in reduced[:2])
