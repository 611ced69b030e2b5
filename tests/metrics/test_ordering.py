"""The order of scores is that of a stable sort, for few and for many of them."""

from __future__ import annotations

import pytest
import torch

from oneshui_hf.metrics.ordering import descending_order


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 7, 1_000, 40_000])
def test_order_of_a_stable_sort(count: int, dtype: torch.dtype) -> None:
    scores = torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=dtype)
    scores[::3] = scores[::3].round()  # equal scores
    special = torch.tensor([-0.0, torch.inf, -torch.inf, 0.0, torch.finfo(dtype).tiny / 2, -torch.finfo(dtype).tiny / 2], dtype=dtype)
    scores[: min(count, 6)] = special[:count]
    assert torch.equal(descending_order(scores), scores.sort(descending=True, stable=True).indices)


def test_order_of_a_column() -> None:
    scores = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(descending_order(scores[:, 1]), scores[:, 1].sort(descending=True, stable=True).indices)
