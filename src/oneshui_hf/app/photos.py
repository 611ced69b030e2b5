"""The photo of a visitor: decoded as a request decodes it, never written to the disk, and what may be wrong with it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.check import MIN_SIDE
from ..data.image_modes import NEARLY_CONSTANT, is_nearly_constant
from ..data.images import SUFFIXES, ImageError, decode, to_pixels
from ..errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

PREVIEW = 320  # longest side of the photo on the page, in pixels
MAX_SAMPLES = 64  # photos of other people that are read, at most


@dataclass(frozen=True)
class Photo:
    """A photo of a visitor, in memory only.

    Attributes:
        data: The bytes of its file.
        image: The decoded photo, upright, in its full size.
    """

    data: bytes = field(repr=False)
    image: Image = field(repr=False)

    @classmethod
    def of(cls, data: bytes) -> Photo:
        """Decode a photo.

        Raises:
            ImageError: It cannot be used; see `images.decode`.
        """
        return cls(data, decode(data, "The photo"))

    def preview(self, side: int = PREVIEW) -> str:
        """Return a small copy for the page, as a data address. It contains no metadata."""
        small = self.image.copy()
        small.thumbnail((side, side))
        return data_address(small)

    def square(self, size: int) -> str:
        """Return the photo in the square that the model sees, for the page."""
        from PIL import Image

        return data_address(self.image.resize((size, size), Image.Resampling.BICUBIC))


def data_address(image: Image) -> str:
    """Return an image as an address that contains it, so that no file is needed."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def fitness_warnings(image: Image, faces: int | None) -> list[str]:
    """Return what may be wrong with a photo, as sentences.

    Args:
        image: The photo, in its full size.
        faces: How many faces were found on it; None if none were looked for.
    """
    found = []
    if faces == 0:
        found.append("No face was found on the photo.")
    if faces is not None and faces > 1:
        found.append(f"The photo shows {faces} faces; cut out the one of the person.")
    if min(image.size) < MIN_SIDE:
        found.append(f"The photo has {image.width}x{image.height} pixels, and less than {MIN_SIDE} a side show little; use a larger one.")
    if is_nearly_constant(to_pixels(image, 64)):
        found.append(f"The photo {NEARLY_CONSTANT}")
    return found


@dataclass(frozen=True)
class Samples:
    """Photos of people who allow that the costs of forgetting are measured on them.

    Attributes:
        images: The decoded photos.
        unreadable: Number of files that could not be read as photos.
    """

    images: tuple[Image, ...] = field(default=(), repr=False)
    unreadable: int = 0


def read_samples(folder: str | None) -> Samples:
    """Read the photos of `--samples`, up to `MAX_SAMPLES`, in the order of their names.

    Raises:
        UsageError: The folder is missing, or contains no photo that can be read.
    """
    if folder is None:
        return Samples()
    if not Path(folder).is_dir():
        raise UsageError(f"There is no folder {folder}; name with --samples the folder that contains the photos.")
    images: list[Image] = []
    unreadable = 0
    for file in sorted(file for file in Path(folder).rglob("*") if file.suffix.lower() in SUFFIXES)[:MAX_SAMPLES]:
        try:
            images.append(decode(file))
        except ImageError:
            unreadable += 1
    if not images:
        raise UsageError(f"{folder} contains no photo that can be read; name with --samples a folder that does.")
    return Samples(tuple(images), unreadable)
