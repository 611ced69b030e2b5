"""Generated portraits and labels, each from its own seed."""

from __future__ import annotations

import numpy as np
from PIL import Image

LABELS = ("Glasses", "Hat", "Smiling")


def portrait(person: int, photo: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """Return a colour gradient of the person, plus noise of the photo."""
    width, height = size
    person_random, photo_random = np.random.default_rng(person), np.random.default_rng([person, photo])
    left, right = person_random.uniform(0, 255, (2, 3))
    ramp = np.linspace(0, 1, width)[None, :, None]
    pixels = (1 - ramp) * left + ramp * right + photo_random.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def bits(person: int, photo: int, count: int) -> list[int]:
    return np.random.default_rng([person, photo, 1]).integers(0, 2, count).tolist()
