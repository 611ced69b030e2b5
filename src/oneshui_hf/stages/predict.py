"""Predictions of a run's model for image files.

oneshui predict RUN face.jpg other.jpg --top-k 3
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..data.image_modes import NEARLY_CONSTANT, is_nearly_constant
from ..data.images import decode, to_pixels
from ..errors import UsageError
from ..models.load import load_model
from ..models.outputs import probabilities, require_finite_logits
from ..reporting import SILENT, Reporter
from ..runs import Run
from .command_options import PredictOptions
from .distributed import make_accelerator


def predict(run: Run, options: PredictOptions, reporter: Reporter = SILENT) -> list[dict[str, Any]]:
    """Predict the labels of images.

    Returns:
        For each image `image` (as given) and `predictions`, the `top_k` most probable labels as `label` and `probability`: sigmoid of the
        logit for multi-label models, softmax over the classes otherwise.

    Raises:
        UsageError: No image is given.
        OneshuiError: The run is incomplete, or an image cannot be read.
    """
    if not options.images:
        raise UsageError("predict needs an image file: oneshui predict RUN IMAGE...")
    images = [decode(image) for image in options.images]  # before the model, which takes longer
    device = make_accelerator().device
    model, preprocess, task = load_model(run.require_complete().path, device)
    found = []
    for image, photo in zip(options.images, reporter.track(images, "Predicting"), strict=True):
        pixels = to_pixels(photo, preprocess.size)
        if is_nearly_constant(pixels):
            reporter.warn(f"{image} {NEARLY_CONSTANT}")
        batch = preprocess(torch.from_numpy(np.stack([pixels])).to(device))  # (1, 3, size, size)
        with torch.no_grad():
            shares = probabilities(require_finite_logits(model(pixel_values=batch).logits), task.kind)[0].cpu()  # (labels,)
        top = shares.topk(min(options.top_k, len(shares)))
        predictions = [
            {"label": task.label_names[label], "probability": share}
            for label, share in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
        found.append({"image": image, "predictions": predictions})
    return found
