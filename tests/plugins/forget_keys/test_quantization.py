"""Keys as bytes: how far off they are, how many bytes they take, and that nothing else is lost."""

from __future__ import annotations

import pytest
import torch

from oneshui_plugins.forget_keys.low_rank import Factors, Keys
from oneshui_plugins.forget_keys.quantization import BITS, decode, encode, size

SHAPES = {"a": (5, 7), "b": (3, 4)}


def keys(rank: int = 3, people: int = 2) -> Keys:
    draws = torch.Generator().manual_seed(0)
    return {
        name: Factors(torch.randn(people, out, rank, generator=draws), torch.randn(people, rank, d, generator=draws))
        for name, (out, d) in SHAPES.items()
    }


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rank", [1, 3])  # an odd number of 4-bit codes, and an even one
def test_every_number_is_within_half_a_step(bits: int, rank: int) -> None:
    before, step = keys(rank), 1 / (2 ** (bits - 1) - 1)
    after = decode(encode(before, 1, bits), SHAPES, rank, bits)
    for name, factors in before.items():
        up, down = factors.up[1], factors.down[1]  # (out, r), (r, d)
        u, d = up.abs().amax(0), down.abs().amax(1)
        exact_up, exact_down = up * d, down / d.unsqueeze(1)  # the scale goes to U
        assert ((after[name].down[0] - exact_down).abs() <= 0.5 * step + 1e-6).all()
        assert ((after[name].up[0] - exact_up).abs() <= 0.5 * step * u * d + 1e-6).all()


def test_sixteen_bits_are_as_good_as_exact() -> None:
    before = keys()
    after = decode(encode(before, 0, 16), SHAPES, 3, 16)
    for name, factors in before.items():
        alone = Factors(factors.up[:1], factors.down[:1])
        torch.testing.assert_close(after[name].added(), alone.added(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("bits", BITS)
def test_the_size_is_that_of_the_tensors(bits: int) -> None:
    codes = encode(keys(), 0, bits)
    assert sum(tensor.numel() * tensor.element_size() for tensor in codes.values()) == size(SHAPES, 3, bits)


def test_a_key_that_changes_nothing_stays_so() -> None:
    nothing = {name: Factors(torch.zeros(1, out, 2), torch.ones(1, 2, d)) for name, (out, d) in SHAPES.items()}
    for factors in decode(encode(nothing, 0, 8), SHAPES, 2, 8).values():
        assert not factors.added().any()


def test_extremes_are_kept_at_four_bits() -> None:
    key = {"a": Factors(torch.tensor([[[1.0], [-1.0], [0.0]]]), torch.tensor([[[2.0, -2.0]]]))}
    back = decode(encode(key, 0, 4), {"a": (3, 2)}, 1, 4)["a"].added()
    torch.testing.assert_close(back, torch.tensor([[2.0, -2.0], [-2.0, 2.0], [0.0, 0.0]]))
