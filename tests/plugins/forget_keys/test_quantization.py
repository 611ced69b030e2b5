"""Quantized keys: their errors, their size in bytes, and that nothing else is lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from oneshui_hf.methods import OneshuiError
from oneshui_plugins.forget_keys.low_rank import LowRankUpdate, Updates
from oneshui_plugins.forget_keys.quantization import BITS, dequantize, key_bytes, quantize

SHAPES = {"a": (5, 7), "b": (3, 4)}


def random_updates(rank: int = 3, identities: int = 2) -> Updates:
    rng = torch.Generator().manual_seed(0)
    return {
        name: LowRankUpdate(torch.randn(identities, out, rank, generator=rng), torch.randn(identities, rank, d, generator=rng))
        for name, (out, d) in SHAPES.items()
    }


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rank", [1, 3])  # an odd and an even count of 4-bit integers
def test_every_entry_has_an_error_of_at_most_half_a_step(bits: int, rank: int) -> None:
    before, step = random_updates(rank), 1 / (2 ** (bits - 1) - 1)
    after = dequantize(quantize(before, 1, bits), SHAPES, rank, bits)
    for name, update in before.items():
        up, down = update.up[1], update.down[1]  # (out, r), (r, d)
        u, d = up.abs().amax(0), down.abs().amax(1)
        exact_up, exact_down = up * d, down / d.unsqueeze(1)  # the scale goes to U
        assert ((after[name].down[0] - exact_down).abs() <= 0.5 * step + 1e-6).all()
        assert ((after[name].up[0] - exact_up).abs() <= 0.5 * step * u * d + 1e-6).all()


def test_sixteen_bits_are_nearly_exact() -> None:
    before = random_updates()
    after = dequantize(quantize(before, 0, 16), SHAPES, 3, 16)
    for name, update in before.items():
        alone = LowRankUpdate(update.up[:1], update.down[:1])
        torch.testing.assert_close(after[name].delta_weight(), alone.delta_weight(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("bits", BITS)
def test_key_bytes_is_the_size_of_the_tensors(bits: int) -> None:
    key = quantize(random_updates(), 0, bits)
    assert sum(tensor.numel() * tensor.element_size() for tensor in key.values()) == key_bytes(SHAPES, 3, bits)


def test_zero_update_stays_zero() -> None:
    zero = {name: LowRankUpdate(torch.zeros(1, out, 2), torch.ones(1, 2, d)) for name, (out, d) in SHAPES.items()}
    for update in dequantize(quantize(zero, 0, 8), SHAPES, 2, 8).values():
        assert not update.delta_weight().any()


def test_four_bits_keep_the_extremes() -> None:
    updates = {"a": LowRankUpdate(torch.tensor([[[1.0], [-1.0], [0.0]]]), torch.tensor([[[2.0, -2.0]]]))}
    restored = dequantize(quantize(updates, 0, 4), {"a": (3, 2)}, 1, 4)["a"].delta_weight()
    torch.testing.assert_close(restored, torch.tensor([[2.0, -2.0], [-2.0, 2.0], [0.0, 0.0]]))


@pytest.mark.parametrize(
    "change", [{"rank": 2}, {"bits": 8}, {"bits": 16}, {"shapes": {"a": (5, 7)}}, {"shapes": {"a": (5, 7), "b": (3, 5)}}]
)
def test_a_key_of_other_options_or_weights_is_refused(change: dict[str, Any]) -> None:
    key = quantize(random_updates(), 0, 4)
    settings: dict[str, Any] = {"shapes": SHAPES, "rank": 3, "bits": 4}
    dequantize(key, **settings)
    with pytest.raises(OneshuiError, match="does not fit this model or the options of the preparation; prepare again"):
        dequantize(key, **settings | change)
