"""Preprocessing: maps uint8 pixels to the input of a model, and saves an image processor with the same result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..runs import read_json

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BICUBIC = 3  # Pillow's constant, as stored by image processors


@dataclass(frozen=True)
class Preprocess:
    """Scales square images of one size to 0..1 and normalises each channel."""

    size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map uint8 (n, 3, S, S) to float32 of the same shape."""
        mean = torch.tensor(self.mean, device=pixels.device).view(1, 3, 1, 1) * 255
        std = torch.tensor(self.std, device=pixels.device).view(1, 3, 1, 1) * 255
        return pixels.float().sub_(mean).div_(std)

    def save(self, folder: Path) -> None:
        """Write `preprocessor_config.json`, for `pipeline()` and other tools that load the checkpoint."""
        from transformers import ViTImageProcessorPil

        square = {"height": self.size, "width": self.size}
        processor = ViTImageProcessorPil(
            do_resize=True, size=square, resample=BICUBIC, image_mean=list(self.mean), image_std=list(self.std)
        )
        processor.save_pretrained(folder)

    @classmethod
    def load(cls, folder: Path) -> Preprocess:
        """Read the file that `save` writes."""
        config = read_json(folder / "preprocessor_config.json")
        return cls(config["size"]["height"], tuple(config["image_mean"]), tuple(config["image_std"]))
