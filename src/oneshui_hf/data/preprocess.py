"""Preprocessing: maps uint8 pixels to the input of a model, and saves an image processor with the same result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..runs import read_json

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BICUBIC = 3  # Pillow's constant, as stored by image processors


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
        """Read the file that `save` writes."""
        config = read_json(folder / "preprocessor_config.json")
        bgr = bool(config.get("do_flip_channel_order"))
        return cls(config["size"]["height"], tuple(config["image_mean"]), tuple(config["image_std"]), bgr)
