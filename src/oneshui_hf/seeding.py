"""Derived seeds: every random draw has its own generator, named by its purpose.

A stream is named by the run's seed and some words (`generator(0, "order", epoch)`). So work can be resumed, split over processes or
reordered without changing a single draw, and libraries that draw from torch's global state cannot change one either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *words: object) -> int:
    """Return a 63-bit seed for the stream named by `words`."""
    digest = hashlib.sha256("\0".join([str(seed), *map(str, words)]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *words: object) -> torch.Generator:
    """Return a CPU generator for the stream named by `words`."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *words))


@contextmanager
def seeded(seed: int, *words: object) -> Iterator[None]:
    """Seed torch's global state for a block whose library code draws from it (weight init, dropout), then restore the state."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, *words))
        yield
