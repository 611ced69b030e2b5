"""Augmentation: determinism, shape and range, and the effect of each kind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from oneshui_hf.data.augment import apply_augmentation, draw_augmentation, resize_crops
from oneshui_hf.data.images import to_pixels
from support.faces import portrait

PIXELS = torch.randint(0, 256, (64, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def augment(pixels: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    return apply_augmentation(pixels, draw_augmentation(len(pixels), kind, generator))


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
    """Resize floats, with rounding and clamping at the end."""
    resize = F.interpolate

    def resize_floats(image: torch.Tensor, **settings: object) -> torch.Tensor:
        assert image.dtype == torch.uint8
        return resize(image.float(), **settings).round().clamp(0, 255)  # type: ignore[arg-type]

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


@pytest.mark.parametrize("side", [1, 2, 16, 33, 56])
def test_resizing_all_photos_at_once_has_the_bytes_of_resizing_each(side: int) -> None:
    generator = draws(side)
    photos = torch.randint(0, 256, (40, 3, side, side), generator=generator, dtype=torch.uint8)
    photos[:4] = photos[:4] // 255 * 255  # black and white: the sums leave the range of a byte
    sizes = torch.randint(1, side + 1, (40, 2), generator=generator).tolist()
    boxes = [(n % (side - height + 1), n % (side - width + 1), height, width) for n, (height, width) in enumerate(sizes)]
    boxes[-1] = (0, 0, side, side)
    expected = [
        F.interpolate(photo[None, :, y : y + h, x : x + w], size=(side, side), mode="bicubic", antialias=True)
        for photo, (y, x, h, w) in zip(photos, boxes, strict=True)
    ]
    assert torch.equal(resize_crops(photos, boxes), torch.cat(expected))
    assert torch.equal(resize_crops(photos[-1:], boxes[-1:]), photos[-1:])


@pytest.mark.parametrize("kind", ["none", "flip", "crop"])
def test_parts_of_a_step_are_augmented_as_the_whole_step(kind: str) -> None:
    drawn = draw_augmentation(len(PIXELS), kind, draws(6))
    parts = [apply_augmentation(part, own) for part, own in zip(PIXELS.tensor_split(3), drawn.tensor_split(3), strict=True)]
    assert torch.equal(torch.cat(parts), augment(PIXELS, kind, draws(6)))


def test_draws_are_those_of_earlier_versions() -> None:
    generator = draws(7)
    flips, crops = torch.rand(5, generator=generator) < 0.5, torch.rand(5, 4, generator=generator)
    drawn = draw_augmentation(5, "crop", draws(7))
    assert drawn.flips is not None and drawn.crops is not None
    assert torch.equal(drawn.flips, flips) and torch.equal(drawn.crops, crops)
