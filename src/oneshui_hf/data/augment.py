"""Augmentation on tensors, with generators passed in."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # area share and aspect of a random resized crop (Szegedy et al. 2015)

# The versions of a photo that an attacker asks about, as (mirrored, steps down, steps to the right): the photo itself comes first.
VIEWS = ((0, 0, 0), (1, 0, 0), (0, 0, 1), (0, 0, -1), (0, 1, 0), (0, -1, 0), (1, 0, 1), (1, 0, -1))
STEP = 16  # a step is the side of the photo divided by this


def view(pixels: torch.Tensor, number: int) -> torch.Tensor:
    """Return a version of each photo (n, 3, S, S), of any type: itself, mirrored, shifted; what a shift uncovers repeats the border."""
    mirrored, down, right = VIEWS[number]
    if mirrored:
        pixels = pixels.flip(-1)
    side = pixels.shape[-1]
    places = torch.arange(side, device=pixels.device)
    for dimension, steps in ((-2, down), (-1, right)):
        if steps:
            pixels = pixels.index_select(dimension, (places - steps * max(1, side // STEP)).clamp(0, side - 1))
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
    # On a CPU torch resizes bytes as they are, several times faster; a GPU takes floats alone.
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
