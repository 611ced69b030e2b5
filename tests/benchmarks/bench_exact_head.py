"""Work of one request to a head in closed form: unpack the sums, subtract a person's rows, solve, pack; in processor seconds.

The ratio is to a Cholesky factorisation in float64 of the same size on one thread, of which solving needs at least one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from oneshui_hf.models.feature_sums import FeatureSums, round_to_grid, solve_head

LABELS, PHOTOS, PERSON = 40, 1000, 24  # 12 photos of a person, and their mirror images
REPEATS = 3


def processor_seconds(work: Callable[[], Any]) -> float:
    """Return the shortest processor time of a few runs."""
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def main() -> None:
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    print(f"\n{'features':>10}{'unpack':>8}{'subtract':>10}{'solve':>8}{'pack':>8}{'sum s':>8}{'Cholesky s':>12}{'ratio':>7}")
    for size in (768, 2304, 3840):
        rows = round_to_grid(torch.randn(PHOTOS, size, generator=random, dtype=torch.float64))
        labels = torch.randint(0, 2, (PHOTOS, LABELS), generator=random)
        sums, person = FeatureSums.of(rows, labels), FeatureSums.of(rows[:PERSON], labels[:PERSON])
        packed, left = sums.tensors(), sums - person
        steps = (
            lambda packed=packed: FeatureSums.from_tensors(packed),
            lambda sums=sums, rows=rows, labels=labels: sums - FeatureSums.of(rows[:PERSON], labels[:PERSON]),
            lambda left=left: solve_head(left, 1.0, 1.0, "multi_label"),
            left.tensors,
        )
        seconds = [processor_seconds(step) for step in steps]
        matrix = left.xx + size * torch.eye(size, dtype=torch.float64)
        factor = processor_seconds(lambda matrix=matrix: torch.linalg.cholesky(matrix))
        columns = "".join(f"{one:>{width}.2f}" for one, width in zip(seconds, (8, 10, 8, 8), strict=True))
        print(f"{size:>10}{columns}{sum(seconds):>8.2f}{factor:>12.2f}{sum(seconds) / factor:>7.1f}")


if __name__ == "__main__":
    main()
