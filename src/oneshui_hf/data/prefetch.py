"""The next batch is read while this one is computed: one thread, no second process, and no copy between processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, cast

import torch

T = TypeVar("T")

AHEAD = 2  # batches that are read before they are needed
END = object()


def prefetch(items: Iterator[T]) -> Generator[T, None, None]:
    """Yield the items of an iterator that runs in a thread of its own, a few items ahead. Its errors are raised here.

    The thread computes with one core: torch would otherwise start as many again as the training uses. What the iterator computes with
    torch must be exact, so that this changes no result.
    """
    with ThreadPoolExecutor(1, "prefetch") as pool:
        cores = torch.get_num_threads()
        pool.submit(_use_one_core).result()
        torch.set_num_threads(cores)  # of this thread, and of those that are started later
        waiting: deque[Future[object]] = deque(pool.submit(next, items, END) for _ in range(AHEAD))
        try:
            while (item := waiting.popleft().result()) is not END:
                waiting.append(pool.submit(next, items, END))
                yield cast(T, item)
        finally:
            for future in waiting:
                future.cancel()


def _use_one_core() -> None:
    torch.get_num_threads()  # a thread's first question sets its number, so that it must come first
    torch.set_num_threads(1)


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor from which a GPU can copy while it computes; on other devices, the tensor itself."""
    return tensor.pin_memory() if device.type == "cuda" else tensor
