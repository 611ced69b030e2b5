"""A model's logits without and with low-rank updates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from oneshui_hf.methods import predict

from ..common.input_covariance import Layer
from .batches import load_pixel_values
from .low_rank import Updates, with_adapters
from .target_logits import LabelledLogits

if TYPE_CHECKING:
    from oneshui_hf.methods import Context, FaceSet


def predict_both_versions(model: nn.Module, faces: FaceSet, context: Context) -> tuple[LabelledLogits, LabelledLogits]:
    """Return a model's logits for the photos of a set, and for their mirror images."""
    original, mirrored = (LabelledLogits(predict(model, faces, context.accelerator, view=view), faces.labels) for view in (0, 1))
    return original, mirrored


def logits_with_adapters(
    model: nn.Module,
    layers: Mapping[str, list[Layer]],
    updates: Updates,
    faces: FaceSet,
    positions: torch.Tensor,
    mirrored: torch.Tensor,
    chunk: int,
    context: Context,
) -> torch.Tensor:
    """Return the logits of a model with these updates for some photos, (n, K) on the CPU. Processes share the passes.

    Args:
        model: The original model.
        layers: The layers that use each weight.
        updates: Of the identities that are trained together.
        faces: The set that contains the photos.
        positions: Positions of the photos in it, (n,).
        mirrored: Which of them are mirrored, (n,) of bool.
        chunk: Photos per pass.
        context: For the processes.
    """
    logits = torch.zeros(len(positions), len(context.task.label_names), device=context.device)
    with torch.no_grad(), with_adapters(layers, updates):
        for rows in context.local_share(torch.arange(len(positions)).split(chunk)):
            logits[rows] = model(pixel_values=load_pixel_values(faces, positions[rows], mirrored[rows], context.device)).logits
    return context.accelerator.reduce(logits, "sum").cpu()
