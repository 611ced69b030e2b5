"""Augmentation: determinism, shape and range, and the effect of each kind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from oneshui_hf.data.augment import augment
from oneshui_hf.data.images import to_pixels
from support.faces import portrait

PIXELS = torch.randint(0, 256, (64, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_none_changes_nothing() -> None:
    assert torch.equal(augment(PIXELS, "none", draws(0)), PIXELS)


def test_flip_mirrors_about_half_of_the_photos() -> None:
    out = augment(PIXELS, "flip", draws(0))
    same = (out == PIXELS).flatten(1).all(1)
    flipped = (out == PIXELS.flip(-1)).flatten(1).all(1)
    assert (same ^ flipped).all()
    assert 16 < flipped.sum() < 48


def test_generator_determines_the_augmentation() -> None:
    state = torch.get_rng_state()
    for kind in ("flip", "crop"):
        assert torch.equal(augment(PIXELS, kind, draws(1)), augment(PIXELS, kind, draws(1)))
        assert not torch.equal(augment(PIXELS, kind, draws(1)), augment(PIXELS, kind, draws(2)))
    assert torch.equal(torch.get_rng_state(), state)


def test_crop_contains_a_part_of_the_photo() -> None:
    ramp = torch.arange(0, 256, 16, dtype=torch.uint8).expand(256, 3, 16, 16).contiguous()  # the brightness is the column
    out = augment(ramp, "crop", draws(3)).float()
    assert out.shape == ramp.shape
    width = (out[:, 0, 8].amax(1) - out[:, 0, 8].amin(1)) / 240  # share of the remaining columns
    assert 0.2 < width.mean() < 0.9
    assert width.min() < 0.4 < 0.8 < width.max()
    rows = out[:, 0].var(dim=1)
    assert rows.max() < 1  # columns remain vertical


def test_uniform_photo_stays_uniform() -> None:
    plain = torch.full((8, 3, 16, 16), 77, dtype=torch.uint8)
    assert torch.equal(augment(plain, "crop", draws(0)), plain)


@pytest.mark.parametrize("kind", ["flip", "crop"])
def test_augmentation_of_a_photo_does_not_depend_on_the_batch(kind: str) -> None:
    other = PIXELS.clone()
    other[1:] = 255 - other[1:]
    assert torch.equal(augment(PIXELS, kind, draws(5))[0], augment(other, kind, draws(5))[0])


@pytest.mark.parametrize("kind", ["none", "flip", "crop"])
def test_input_batch_is_not_modified(kind: str) -> None:
    before = PIXELS.clone()
    out = augment(PIXELS, kind, draws(0))
    assert torch.equal(PIXELS, before)
    assert out.dtype == torch.uint8
    assert out.shape == PIXELS.shape


def as_floats(monkeypatch: pytest.MonkeyPatch, pixels: torch.Tensor) -> torch.Tensor:
    """Augment as floats, as on a GPU, with rounding and clamping at the end."""
    resize = F.interpolate

    def resize_floats(image: torch.Tensor, **settings: object) -> torch.Tensor:
        assert image.dtype == torch.uint8
        return resize(image.float(), **settings)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(F, "interpolate", resize_floats)
        return augment(pixels, "crop", draws(4))


@pytest.mark.parametrize("size", [16, 56])
@pytest.mark.parametrize("kind", ["noise", "portraits"])
def test_resizing_bytes_equals_resizing_floats(monkeypatch: pytest.MonkeyPatch, kind: str, size: int) -> None:
    noise = torch.randint(64, 192, (48, 3, size, size), generator=draws(0), dtype=torch.uint8)
    portraits = torch.stack([torch.from_numpy(to_pixels(portrait(i, 0, (64, 64)), size)) for i in range(48)])
    pixels = {"noise": noise, "portraits": portraits}[kind]
    difference = augment(pixels, "crop", draws(4)).int() - as_floats(monkeypatch, pixels).int()
    assert difference.abs().max() <= 1
    assert difference.float().mean().abs() < 0.02


def test_resizing_bytes_differs_slightly_at_strong_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = torch.randint(0, 256, (48, 3, 56, 56), generator=draws(0), dtype=torch.uint8)  # bytes are clamped between the two passes
    difference = augment(noise, "crop", draws(4)).int() - as_floats(monkeypatch, noise).int()
    assert (difference.abs() > 1).float().mean() < 0.03
    assert difference.float().mean().abs() < 0.02
