"""Augmentation of image tensors, with explicit random generators."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # relative area and aspect ratio of a random resized crop (Szegedy et al. 2015)

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


def augment(pixels: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """Augment a batch.

    Args:
        pixels: uint8 (n, 3, S, S).
        kind: "crop" (random resized crop and flip), "flip", or "none".
        generator: A CPU generator.
    """
    if kind == "none":
        return pixels
    flips = torch.rand(len(pixels), generator=generator) < 0.5
    pixels = torch.where(flips.to(pixels.device).view(-1, 1, 1, 1), pixels.flip(-1), pixels)
    return _random_resized_crop(pixels, generator) if kind == "crop" else pixels


def _random_resized_crop(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    side = pixels.shape[-1]
    # On a CPU, torch resizes bytes directly, which is several times faster; on a GPU it resizes floats only.
    pixels = pixels if pixels.device.type == "cpu" else pixels.float()
    draws = torch.rand(len(pixels), 4, generator=generator).tolist()
    crops = []
    for image, (area, aspect, top, left) in zip(pixels, draws, strict=True):
        share = SCALE[0] + area * (SCALE[1] - SCALE[0])
        ratio = math.exp(math.log(RATIO[0]) + aspect * (math.log(RATIO[1]) - math.log(RATIO[0])))
        height = max(1, min(side, round(side * math.sqrt(share / ratio))))
        width = max(1, min(side, round(side * math.sqrt(share * ratio))))
        y, x = int(top * (side - height + 1)), int(left * (side - width + 1))
        crop = image[:, y : y + height, x : x + width].unsqueeze(0)
        crops.append(F.interpolate(crop, size=(side, side), mode="bicubic", antialias=True, align_corners=False))
    resized = torch.cat(crops)
    return resized if resized.dtype == torch.uint8 else resized.round_().clamp_(0, 255).to(torch.uint8)
