"""Preprocessing: maps uint8 pixels to the input of a model, and saves an image processor with the same result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator

from ..runs import PREPROCESSOR, read_object
from ..validation import Schema, check_fields

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BICUBIC = 3  # Pillow's constant, as stored by image processors
MAX_SIDE = 4096  # of a photo in pixels

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Mean = Annotated[float, Field(ge=-1e3, le=1e3)]
Scale = Annotated[float, Field(ge=1e-6, le=1e6)]


class _Square(Schema):
    height: Side
    width: Side

    @model_validator(mode="after")
    def _require_square(self) -> _Square:
        if self.height != self.width:
            raise ValueError("is not square")
        return self


class _Processor(Schema):
    """The fields of an image processor that are used."""

    size: _Square
    image_mean: Annotated[list[Mean], Field(min_length=3, max_length=3)]
    image_std: Annotated[list[Scale], Field(min_length=3, max_length=3)]
    rescale_factor: Scale | None = None
    do_flip_channel_order: bool | None = None


@dataclass(frozen=True)
class Preprocess:
    """Scales square images of one size to 0..1 and normalises each channel.

    Attributes:
        size: The side in pixels.
        mean: Of each channel of the input.
        std: Of each channel of the input.
        bgr: Whether the model takes BGR. The mean is 0 then, and all channels have the same standard deviation.
        notes: For the user: how this differs from the checkpoint's own preprocessing. Not stored.
    """

    size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    bgr: bool = False
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map uint8 (n, 3, S, S) to float32 of the same shape."""
        mean = torch.tensor(self.mean, device=pixels.device).view(1, 3, 1, 1) * 255
        std = torch.tensor(self.std, device=pixels.device).view(1, 3, 1, 1) * 255
        return (pixels.flip(1) if self.bgr else pixels).float().sub_(mean).div_(std)

    def save(self, folder: Path) -> None:
        """Write `preprocessor_config.json`, for `pipeline()` and other tools that load the checkpoint."""
        from transformers import MobileViTImageProcessorPil, ViTImageProcessorPil

        square = {"height": self.size, "width": self.size}
        settings = {"do_resize": True, "size": square, "resample": BICUBIC, "image_mean": list(self.mean), "image_std": list(self.std)}
        if self.bgr:  # this processor can reverse the channels, and does not normalise
            settings |= {"do_flip_channel_order": True, "do_center_crop": False, "rescale_factor": 1 / (255 * self.std[0])}
            MobileViTImageProcessorPil(**settings).save_pretrained(folder)
        else:
            ViTImageProcessorPil(**settings).save_pretrained(folder)

    @classmethod
    def load(cls, folder: Path) -> Preprocess:
        """Read the file that `save` writes.

        Raises:
            OneshuiError: It is missing or damaged, or has a value that no image processor has.
        """
        config = read_processor(folder)
        bgr = bool(config.get("do_flip_channel_order"))
        return cls(config["size"]["height"], tuple(config["image_mean"]), tuple(config["image_std"]), bgr)


def read_processor(folder: Path) -> dict[str, Any]:
    """Read the `preprocessor_config.json` of a run.

    Raises:
        OneshuiError: It is missing or damaged, or has a value that no image processor has.
    """
    config = read_object(folder / PREPROCESSOR)
    check_fields(_Processor, config, folder / PREPROCESSOR)
    return config
