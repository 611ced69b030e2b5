"""Augmentation: drawn from the generator, shape and range kept, and what each kind may do."""

from __future__ import annotations

import torch

from oneshui_hf.data.augment import augment

PIXELS = torch.randint(0, 256, (64, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_none_changes_nothing() -> None:
    assert torch.equal(augment(PIXELS, "none", draws(0)), PIXELS)


def test_flip_flips_about_half() -> None:
    out = augment(PIXELS, "flip", draws(0))
    same = (out == PIXELS).flatten(1).all(1)
    flipped = (out == PIXELS.flip(-1)).flatten(1).all(1)
    assert (same ^ flipped).all()
    assert 16 < flipped.sum() < 48


def test_the_generator_decides_everything() -> None:
    state = torch.get_rng_state()
    for kind in ("flip", "crop"):
        assert torch.equal(augment(PIXELS, kind, draws(1)), augment(PIXELS, kind, draws(1)))
        assert not torch.equal(augment(PIXELS, kind, draws(1)), augment(PIXELS, kind, draws(2)))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_crop_shows_a_part_of_the_photo() -> None:
    ramp = torch.arange(0, 256, 16, dtype=torch.uint8).expand(256, 3, 16, 16).contiguous()  # brightness tells the column
    out = augment(ramp, "crop", draws(3)).float()
    assert out.shape == ramp.shape
    width = (out[:, 0, 8].amax(1) - out[:, 0, 8].amin(1)) / 240  # share of the columns that is left
    assert 0.2 < width.mean() < 0.9
    assert width.min() < 0.4 < 0.8 < width.max()
    rows = out[:, 0].var(dim=1)
    assert rows.max() < 1  # columns stay columns


def test_a_plain_photo_stays_plain() -> None:
    plain = torch.full((8, 3, 16, 16), 77, dtype=torch.uint8)
    assert torch.equal(augment(plain, "crop", draws(0)), plain)
