"""Augmentation of image tensors, with explicit random generators."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # relative area and aspect ratio of a random resized crop (Szegedy et al. 2015)
CUBIC = -0.5  # parameter of the cubic convolution (Keys 1981), as in Pillow

# The views of a photo that an attack queries, as (mirrored, steps down, steps to the right). View 0 is the photo itself.
VIEWS = ((0, 0, 0), (1, 0, 0), (0, 0, 1), (0, 0, -1), (0, 1, 0), (0, -1, 0), (1, 0, 1), (1, 0, -1))
SHIFT_DIVISOR = 16  # one step is the side of the photo divided by this


def apply_view(pixels: torch.Tensor, view: int) -> torch.Tensor:
    """Return one view of each photo (n, 3, S, S), of any dtype: unchanged, mirrored or shifted. A shift repeats the border pixels."""
    mirrored, down, right = VIEWS[view]
    if mirrored:
        pixels = pixels.flip(-1)
    side = pixels.shape[-1]
    indices = torch.arange(side, device=pixels.device)
    for dimension, steps in ((-2, down), (-1, right)):
        if steps:
            pixels = pixels.index_select(dimension, (indices - steps * max(1, side // SHIFT_DIVISOR)).clamp(0, side - 1))
    return pixels


@dataclass(frozen=True)
class AugmentDraws:
    """The random numbers that augment the photos of a step.

    Attributes:
        flips: Whether a photo is mirrored, bool (n,); None changes nothing.
        crops: Area, aspect ratio, top and left of its crop, each in 0..1, float (n, 4); None keeps the whole photo.
    """

    flips: torch.Tensor | None = None
    crops: torch.Tensor | None = None

    def tensor_split(self, parts: int) -> list[AugmentDraws]:
        """Return the draws of each part of the photos, which are divided as `torch.Tensor.tensor_split` divides them."""
        if self.flips is None:
            return [self] * parts
        flips = self.flips.tensor_split(parts)
        crops = [None] * parts if self.crops is None else self.crops.tensor_split(parts)
        return [AugmentDraws(*both) for both in zip(flips, crops, strict=True)]


def draw_augmentation(count: int, kind: str, generator: torch.Generator) -> AugmentDraws:
    """Return the random numbers for a number of photos.

    Args:
        count: Number of photos.
        kind: "crop" (random resized crop and flip), "flip", or "none".
        generator: A CPU generator.
    """
    if kind == "none":
        return AugmentDraws()
    flips = torch.rand(count, generator=generator) < 0.5
    return AugmentDraws(flips, torch.rand(count, 4, generator=generator) if kind == "crop" else None)


def apply_augmentation(pixels: torch.Tensor, draws: AugmentDraws) -> torch.Tensor:
    """Return augmented photos, the same bytes on every device.

    Args:
        pixels: uint8 (n, 3, S, S).
        draws: See `draw_augmentation`.
    """
    if draws.flips is not None:
        photo = torch.arange(len(pixels)) + len(pixels) * draws.flips  # copies whole photos: a fifth of the time of `torch.where` on bytes
        pixels = torch.cat([pixels, pixels.flip(-1)]).index_select(0, photo.to(pixels.device))
    if draws.crops is None:
        return pixels
    boxes = [_crop_box(pixels.shape[-1], *row) for row in draws.crops.tolist()]
    return _resize_each(pixels, boxes) if pixels.device.type == "cpu" else resize_crops(pixels, boxes)


def _crop_box(side: int, area: float, aspect: float, top: float, left: float) -> tuple[int, int, int, int]:
    """Return first row, first column, height and width of a crop."""
    share = SCALE[0] + area * (SCALE[1] - SCALE[0])
    ratio = math.exp(math.log(RATIO[0]) + aspect * (math.log(RATIO[1]) - math.log(RATIO[0])))
    height = max(1, min(side, round(side * math.sqrt(share / ratio))))
    width = max(1, min(side, round(side * math.sqrt(share * ratio))))
    return int(top * (side - height + 1)), int(left * (side - width + 1)), height, width


def _resize_each(pixels: torch.Tensor, boxes: list[tuple[int, int, int, int]]) -> torch.Tensor:
    """Crop and resize photo by photo, with torch's resampling of bytes, which exists on CPUs only."""
    crops = (pixels[n : n + 1, :, y : y + height, x : x + width] for n, (y, x, height, width) in enumerate(boxes))
    size = pixels.shape[-2:]
    return torch.cat([F.interpolate(crop, size=size, mode="bicubic", antialias=True, align_corners=False) for crop in crops])


def resize_crops(pixels: torch.Tensor, boxes: list[tuple[int, int, int, int]]) -> torch.Tensor:
    """Crop and resize all photos at once, on any device, to the bytes that `torch.nn.functional.interpolate` computes on a CPU.

    It resamples bytes with whole numbers as weights: first along the rows, rounded to bytes, then along the columns. Here these sums are
    two batched products. All partial sums are below 2^24, so float32 computes them exactly.

    Args:
        pixels: uint8 (n, 3, S, S).
        boxes: First row, first column, height and width of each crop, at most S.
    """
    exact = pixels.device if pixels.device.type == "cuda" else torch.device("cpu")  # others may lack float64
    top, left, height, width = torch.tensor(boxes, dtype=torch.float64, device=exact).unbind(1)
    side = pixels.shape[-1]
    columns, column_unit = (tensor.to(pixels.device) for tensor in _bicubic_weights(left, width, side))
    rows, row_unit = (tensor.to(pixels.device) for tensor in _bicubic_weights(top, height, side))
    half = _round_to_byte(pixels.float() @ columns.mT.unsqueeze(1), column_unit)
    return _round_to_byte(rows.unsqueeze(1) @ half, row_unit).to(torch.uint8)


def _bicubic_weights(first: torch.Tensor, size: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights of a crop's pixels in each resized pixel, whole numbers, and the number that stands for 1.

    The formulas are those of torch's `_compute_index_ranges_int16_weights` for bicubic resampling with antialiasing, which has no effect
    here, since no crop is larger than the photo.

    Args:
        first: First pixel of each crop, float64 (n,).
        size: Its number of pixels, float64 (n,).
        side: Number of pixels of the photo, and of the resized crop.

    Returns:
        float32 (n, side, side), resized pixels by pixels of the photo; and float32 (n,).
    """
    first, size = first.view(-1, 1, 1), size.view(-1, 1, 1)
    pixel = torch.arange(side, dtype=torch.float64, device=first.device)
    source, center = pixel - first, size / side * (pixel.view(-1, 1) + 0.5)
    inside = (source >= (center - 1.5).trunc().clamp(min=0)) & (source < torch.minimum((center + 2.5).trunc(), size))
    distance = (source - center + 0.5).abs()
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * CUBIC
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0)) * inside
    weights /= weights.sum(2, keepdim=True)
    # The largest power of two that keeps all weights of a crop in 16 bits.
    powers = 2.0 ** torch.arange(1, 23, dtype=torch.float64, device=first.device)
    fits = (0.5 + weights.amax((1, 2)).unsqueeze(1) * powers).trunc() < 2**15
    unit = 2.0 ** fits.sum(1).double()
    whole = weights.sign() * (0.5 + weights.abs() * unit.view(-1, 1, 1)).trunc()
    return whole.float(), unit.float()


def _round_to_byte(sums: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    unit = unit.view(-1, 1, 1, 1)
    return sums.add_(unit / 2).div_(unit).floor_().clamp_(0, 255)
