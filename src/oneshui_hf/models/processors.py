"""What a checkpoint's own image processor does to a photo, measured by giving it test images, as far as `Preprocess` can follow it.

Processors have many settings (normalise or not, scale or not, an offset, a second division, BGR). All of them are one scale and one offset
per channel, which two uniform images show. What cannot be followed is described in notes for the user.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..data.preprocess import BICUBIC, IMAGENET_MEAN, IMAGENET_STD, MAX_SIDE
from ..errors import first_line
from .checks import MAIN

PROBES = (640, 480)  # sides of the test images; different from usual inputs, and from each other
FRAME = 6  # pixels of a frame that cropping removes
TOLERANCE = 1e-3
RESAMPLING = {0: "nearest-neighbour", 1: "Lanczos", 2: "bilinear", 4: "box", 5: "Hamming"}


@dataclass(frozen=True)
class Processing:
    """What a processor does.

    Attributes:
        side: The side of the square that it returns; None if it depends on the photo, or is not square.
        mean: Per channel, for values of 0..1.
        std: Per channel.
        bgr: Whether it reverses the channels.
        notes: What cannot be followed, and what is used instead. `{side}` stands for the side of the input.
    """

    side: int | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    bgr: bool = False
    notes: tuple[str, ...] = ()


def load_processor(name: str, revision: str | None = None) -> Any:
    """Load the image processor of a checkpoint.

    Raises:
        OSError: The checkpoint has none.
        ValueError: It cannot be read.
    """
    from transformers import AutoImageProcessor, ViTImageProcessorPil

    try:
        try:
            return AutoImageProcessor.from_pretrained(name, revision=revision or MAIN, backend="pil", trust_remote_code=False)
        except ImportError:  # some exist for torchvision only; their files have the same keys
            return ViTImageProcessorPil.from_pretrained(name, revision=revision or MAIN, trust_remote_code=False)
    except (ImportError, AttributeError, LookupError, TypeError) as error:  # transformers does not check the contents of the file
        raise ValueError(f"its image processor cannot be read ({first_line(error)})") from None


def read_processing(name: str, revision: str | None = None) -> Processing:
    """Return what the processor of a checkpoint does; ImageNet's statistics if there is none."""
    try:
        processor = load_processor(name, revision)
    except (OSError, ValueError):
        return Processing(notes=("has no image processor that can be read; the mean and standard deviation of ImageNet are used",))
    mean, std = (_statistics(getattr(processor, name, None)) for name in ("image_mean", "image_std"))
    named = Processing(mean=mean or IMAGENET_MEAN, std=std if std and all(std) else IMAGENET_STD)
    try:
        return _measure(processor, named)
    except Exception:  # a processor of another kind of model may fail in any way
        what = f"mean {_listed(named.mean)} and standard deviation {_listed(named.std)}"
        return Processing(
            None, named.mean, named.std, notes=(f"has an image processor that does not return one square image; {what} are used",)
        )


def _statistics(value: Any) -> tuple[float, ...] | None:
    """Return the mean or standard deviation of a processor; None if it is not three finite numbers."""
    numbers = value if isinstance(value, list | tuple) and len(value) == 3 else ()
    finite = [float(n) for n in numbers if isinstance(n, int | float) and math.isfinite(n)]
    return tuple(finite) if len(finite) == 3 else None


def _require_bounded(processor: Any) -> None:
    """Check that a processor does not make images of more than `MAX_SIDE` pixels a side, before it makes one.

    Raises:
        ValueError: It does.
    """
    for name in ("size", "crop_size", "pad_size"):
        sizes = getattr(processor, name, None) or {}
        sides = [sizes] if isinstance(sizes, int) else dict(sizes).values()
        if any(isinstance(side, int) and not 0 < side <= MAX_SIDE for side in sides):
            raise ValueError("the output is too large")


def _measure(processor: Any, named: Processing) -> Processing:
    """Return what a processor does to test images.

    Raises:
        ValueError: Its output is not an image of three channels, or not a scaled copy of its input.
    """
    _require_bounded(processor)
    black, white, red, grey = (_uniform(processor, colour) for colour in ((0, 0, 0), (255, 255, 255), (255, 0, 0), (128, 128, 128)))
    middle = [image[:, image.shape[1] // 2, image.shape[2] // 2] for image in (black, white, red, grey)]
    offset, scale = middle[0], (middle[1] - middle[0]) / 255
    if not (np.abs(scale) > 0).all() or not np.allclose(middle[3], offset + 128 * scale, atol=TOLERANCE * np.abs(scale * 255).max()):
        raise ValueError("the output is not proportional to the input")
    shown = np.abs(middle[2] - offset) > np.abs(scale) * 255 / 2
    if shown.tolist() not in ([True, False, False], [False, False, True]):
        raise ValueError("the output has other channels")
    bgr = bool(shown[2])
    mean, std = _rounded(-offset / (255 * scale)), _rounded(1 / (255 * scale))
    if np.allclose(mean, named.mean, atol=TOLERANCE) and np.allclose(std, named.std, rtol=TOLERANCE):
        mean, std = named.mean, named.std  # without the rounding errors of the measurement
    notes = []
    if bgr and not (np.allclose(mean, 0) and np.allclose(std, std[0])):
        notes.append("takes BGR and normalises; RGB is used")
        bgr = False
    height, width = black.shape[1:]
    fixed = height == width == _uniform(processor, (0, 0, 0), PROBES[1]).shape[1]
    if not fixed:
        notes.append("has inputs that are not square, or as large as the photo; {side}x{side} is used")
    elif not _shows_everything(processor, offset, scale, height):
        notes.append("crops or pads photos; the whole photo is resized to {side}x{side} instead")
    if (used := getattr(processor, "resample", BICUBIC)) in RESAMPLING:
        notes.append(f"resizes with {RESAMPLING[used]} interpolation; bicubic is used")
    return Processing(height if fixed else None, mean, std, bgr, tuple(notes))


def _uniform(processor: Any, colour: tuple[int, int, int], side: int = PROBES[0]) -> np.ndarray:
    return _output(processor, Image.new("RGB", (side, side), colour))


def _output(processor: Any, image: Image.Image) -> np.ndarray:
    """Return what a processor makes of an image, (3, H, W)."""
    pixels = np.asarray(processor(images=image, return_tensors="pt")["pixel_values"], dtype=np.float64)
    if pixels.ndim != 4 or pixels.shape[:2] != (1, 3):
        raise ValueError("the output is not one image")
    return pixels[0]


def _shows_everything(processor: Any, offset: np.ndarray, scale: np.ndarray, side: int) -> bool:
    """Return whether the thin white frame of a wide black image reaches all four edges of the output."""
    wide = Image.new("RGB", (PROBES[0], PROBES[0] // 2))
    ImageDraw.Draw(wide).rectangle((0, 0, PROBES[0] - 1, PROBES[0] // 2 - 1), outline=(255, 255, 255), width=FRAME)
    found = _output(processor, wide)
    if found.shape[1:] != (side, side):
        return False
    white = ((found - offset[:, None, None]) / (255 * scale[:, None, None])).mean(axis=0)  # 1 is white
    least = min(white[0].mean(), white[-1].mean(), white[:, 0].mean(), white[:, -1].mean())
    return bool(least > min(1.0, side * FRAME / PROBES[0]) / 2)  # in a small output the frame is thinner than a pixel


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.7g}") + 0.0 for value in values)  # -0.0 becomes 0.0


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
