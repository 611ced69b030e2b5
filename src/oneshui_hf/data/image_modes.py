"""Converts a photo of any mode to 8-bit RGB as people see it: transparent parts on white, 16-bit values scaled by what the file holds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OneshuiError

if TYPE_CHECKING:
    from PIL.Image import Image

BACKGROUND = (255, 255, 255)  # white, the usual page behind a cut-out photo
DEPTHS = (8, 10, 12, 14, 16)  # bits per value of cameras and scanners
ORIENTATION = 0x0112  # the EXIF tag
CONSTANT_RANGE = 8  # a photo whose values differ by less in every channel shows nothing
NEARLY_CONSTANT = "has nearly the same colour everywhere and may show nobody."  # how a warning about such a photo ends
UNKNOWN = {
    "F": "contains 32-bit values of unknown range; save it with 8 bits per channel.",
    "LAB": "has the colour mode LAB, which is not supported; save it as RGB.",
}

# Pillow keeps the high byte of 16-bit colours only. With the other byte order it returns the low byte.
OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}


class ModeError(OneshuiError):
    """The values of a photo have no known meaning as colours."""


def to_rgb(image: Image, reopen: Callable[[], Image] | None = None) -> Image:
    """Return an upright 8-bit RGB copy of an image, without metadata.

    Transparent parts get the colour `BACKGROUND`. Values of more than 8 bits are scaled by the smallest of `DEPTHS` that holds all of them.

    Args:
        image: Any image. It is loaded, and otherwise not modified.
        reopen: Opens the image's file again. Without it, 16-bit colours are taken as 16 bits deep, as Pillow does.

    Raises:
        ModeError: The image contains values of unknown range.
    """
    rawmode = _rawmode(image)
    image.load()
    turn = _turn(image)  # after loading: a PNG may have it behind its pixels
    if image.mode.startswith("I"):
        found = _blend_deep(_grey_values(image))
    elif reopen is not None and (values := _colour_values(image, rawmode, reopen)) is not None:
        found = _blend_deep(values)
    elif image.mode in UNKNOWN:
        raise ModeError(UNKNOWN[image.mode])
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        found = _blend(_to_rgba(image, rawmode))
    else:
        found = image.convert("RGB")
    found = found if turn is None else found.transpose(turn)
    found.info = {}
    return found


def is_nearly_constant(pixels: np.ndarray) -> bool:
    """Return whether a photo (3, S, S) shows nothing: all values of each channel are nearly the same."""
    return bool(np.ptp(pixels, axis=(1, 2)).max() < CONSTANT_RANGE)


def _turn(image: Image) -> Any:
    """Return the transposition that makes an image upright, or None. EXIF is read and never written: Pillow cannot write some values."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        return turns.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow raises many kinds of errors for damaged EXIF, which has no orientation then
        return None


def _rawmode(image: Image) -> str:
    """Return how the file stores pixels, such as 'RGB;16B'; empty if the image is loaded already or its decoder does not say."""
    tile = getattr(image, "tile", None)
    if not tile:
        return ""
    settings = tile[0][3]
    name = settings[0] if isinstance(settings, tuple) and settings else settings
    return name if isinstance(name, str) else ""


def _grey_values(image: Image) -> np.ndarray:
    """Return the values of deep grey images and, if a value means transparency, their alpha: uint16 (H, W, 1 or 2)."""
    values = np.asarray(image)
    if image.mode == "I" and (values.min() < 0 or values.max() > 0xFFFF):
        raise ModeError(UNKNOWN["F"])
    grey = values.astype(np.uint16)[..., None]
    return _with_key(grey, image.info.get("transparency"))


def _with_key(values: np.ndarray, key: Any) -> np.ndarray:
    """Append an alpha channel that is zero where all values equal a key, if there is one."""
    if key is None or isinstance(key, bytes):
        return values
    alpha = np.where((values == np.asarray(key)).all(axis=-1, keepdims=True), 0, 0xFFFF).astype(np.uint16)
    return np.concatenate([values, alpha], axis=-1)


def _colour_values(image: Image, rawmode: str, reopen: Callable[[], Image]) -> np.ndarray | None:
    """Return the values of an image with 16 bits per colour, uint16 (H, W, 2 to 4); None for other images.

    Args:
        image: The loaded image.
        rawmode: How its file stores pixels.
        reopen: Opens its file again.
    """
    name, _, depth = rawmode.partition(";")
    if depth not in OTHER_BYTE or (name, image.mode) not in (("RGB", "RGB"), ("RGBA", "RGBA"), ("LA", "RGBA")):
        return None
    if name == "LA":  # four bytes: both of grey, both of alpha
        parts = np.asarray(_load_as(reopen(), "RGBA")).astype(np.uint16)
        return parts[..., 0::2] << 8 | parts[..., 1::2]
    high = np.asarray(image).astype(np.uint16)
    values = high << 8 | np.asarray(_load_as(reopen(), f"{name};{OTHER_BYTE[depth]}"))
    return _with_key(values, image.info.get("transparency")) if name == "RGB" else values


def _load_as(image: Image, rawmode: str) -> Image:
    """Load an image as if its file stored pixels in another way."""

    def with_rawmode(tile: Any) -> Any:
        settings = (rawmode, *tile[3][1:]) if isinstance(tile[3], tuple) else rawmode
        return tile._replace(args=settings) if hasattr(tile, "_replace") else (*tile[:3], settings)  # before Pillow 11: a tuple

    image.tile = [with_rawmode(tile) for tile in image.tile]  # type: ignore[attr-defined]
    image.load()
    return image


def _blend_deep(values: np.ndarray) -> Image:
    """Return deep grey (1 or 2 channels) or colour (3 or 4 channels) as RGB; the last of 2 or 4 channels is alpha."""
    from PIL import Image

    channels = values.shape[-1]
    colours = 1 if channels < 3 else 3
    eight = np.repeat(_to_eight_bits(values[..., :colours]), 3 // colours, axis=-1)
    if channels == colours:
        return Image.fromarray(eight)
    return _blend(Image.fromarray(np.concatenate([eight, _to_eight_bits(values[..., colours:])], axis=-1)))


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    """Scale values to 8 bits, as if they had the smallest of `DEPTHS` that holds them: many tools save 12 bits in a 16-bit file."""
    bits = next(bits for bits in DEPTHS if int(values.max()) < 1 << bits)
    return (values >> (bits - 8)).astype(np.uint8)


def _to_rgba(image: Image, rawmode: str) -> Image:
    key = image.info.get("transparency")
    if image.mode in ("L", "RGB") and key is not None and not isinstance(key, bytes):
        # The key has the depth of the file, and the pixels have 8 bits.
        scale = {"L;2": 85, "L;4": 17}.get(rawmode, 1)
        values = _with_key(np.asarray(image).reshape(image.height, image.width, -1), np.asarray(key) * scale & 0xFF)
        return _as_rgba(values)
    if image.mode == "La":
        image = image.convert("LA")
    return image.convert("RGBA")


def _as_rgba(values: np.ndarray) -> Image:
    from PIL import Image

    colours = np.repeat(values[..., :-1], 3, axis=-1) if values.shape[-1] == 2 else values[..., :-1]
    return Image.fromarray(np.concatenate([colours, values[..., -1:]], axis=-1).astype(np.uint8))


def _blend(image: Image) -> Image:
    """Return an RGBA image on the background."""
    from PIL import Image

    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), image).convert("RGB")
