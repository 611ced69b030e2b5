"""Items that are made ahead of time in a thread: all of them, in order, with their errors, and without an effect on torch's threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from oneshui_hf.data.prefetch import AHEAD, prefetch


def test_items_keep_their_order_and_are_made_in_one_other_thread() -> None:
    makers = set()

    def items() -> Iterator[int]:
        for number in range(20):
            makers.add(threading.current_thread().name)
            yield number

    assert list(prefetch(items())) == list(range(20))
    assert len(makers) == 1 and threading.current_thread().name not in makers
    assert list(prefetch(iter(()))) == []


def test_items_are_made_a_few_ahead_and_no_more_after_the_end() -> None:
    made: list[int] = []
    stream = prefetch(made.append(number) or number for number in range(100))  # type: ignore[func-returns-value]
    assert next(stream) == 0
    stream.close()
    assert 1 <= len(made) <= AHEAD + 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_an_error_is_raised_where_its_item_is_needed() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("no such photo")

    stream = prefetch(items())
    assert next(stream) == 1
    with pytest.raises(OSError, match="no such photo"):
        next(stream)


def test_the_number_of_threads_of_torch_stays_as_it_is() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        counts = list(prefetch(torch.get_num_threads() for _ in range(3)))
        assert (counts, torch.get_num_threads()) == ([1, 1, 1], 3)
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [3]
    finally:
        torch.set_num_threads(before)
