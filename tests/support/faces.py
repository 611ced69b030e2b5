"""Generated portraits and labels, each from its own seed."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

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


def write_photos(
    folder: Path, people: int, photos: int, name_of: Callable[[int], str], size: tuple[int, int] = (32, 32), *, vary: bool = True
) -> None:
    """Write portraits and their metadata.csv into a folder; with `vary` unset, all photos of a person have the same labels."""
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "identity", *LABELS])
        for person in range(people):
            for photo in range(photos):
                name = f"{person:03d}-{photo}.png"
                portrait(person, photo, size).save(folder / name)
                writer.writerow([name, name_of(person), *bits(person, photo if vary else 0, len(LABELS))])
