"""The pipeline of a run: image classification that decodes photos as training did."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from PIL.Image import Image
from transformers.pipelines.image_classification import ImageClassificationPipeline

from ..data.images import decode


class PhotoPipeline(ImageClassificationPipeline):  # type: ignore[misc]
    """Image classification of photos as `oneshui predict` sees them.

    The pipeline of transformers shows the hidden colour of transparent parts, and darkens deep photos that use few of their bits.
    """

    def preprocess(self, image: Any, timeout: float | None = None) -> Any:
        """Return the model's input. A path or a PIL image is decoded by `data.images.decode`; transformers reads everything else."""
        if isinstance(image, Image):
            image = decode(image)
        elif isinstance(image, str | PathLike) and _is_file(image):
            image = decode(Path(image))
        return super().preprocess(image, timeout=timeout)


def _is_file(name: str | PathLike[str]) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # base64 is too long for a name
        return False
