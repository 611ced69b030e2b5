"""Seeds that are derived, never shared: every draw has its own generator, named by what it is for.

A stream is named by the run's seed and some words (`generator(0, "order", epoch)`), so that work can be resumed, split over
processes or reordered without changing a single draw, and no library that also draws from torch's global state can disturb it.
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
    """Run a block whose library code can only draw from torch's global state (weight init, dropout), and restore that state."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, *words))
        yield
