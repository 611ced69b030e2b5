"""What a model says of photos: as it is, and with keys attached to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from oneshui_hf.methods import predict

from ..common.input_covariance import Layer
from .batches import shown
from .low_rank import Keys, attached
from .target_logits import Said

if TYPE_CHECKING:
    from oneshui_hf.methods import Context, FaceSet


def as_it_is_and_mirrored(model: nn.Module, faces: FaceSet, context: Context) -> tuple[Said, Said]:
    """Return what a model says of photos as they are, and of their mirror images."""
    as_it_is, mirrored = (Said(predict(model, faces, context.accelerator, version=version), faces.labels) for version in (0, 1))
    return as_it_is, mirrored


def said_with(
    model: nn.Module,
    layers: Mapping[str, list[Layer]],
    keys: Keys,
    faces: FaceSet,
    positions: torch.Tensor,
    mirrored: torch.Tensor,
    chunk: int,
    context: Context,
) -> torch.Tensor:
    """Return what a model says with these keys of some photos, logits (n, K) on the CPU. Processes share them.

    Args:
        model: The original model.
        layers: Where keys are attached.
        keys: Of those who ask.
        faces: The set that the photos are of.
        positions: Which ones, (n,).
        mirrored: Which of them are shown mirrored, (n,) of bool.
        chunk: Photos a pass.
        context: For the processes.
    """
    said = torch.zeros(len(positions), len(context.task.label_names), device=context.device)
    with torch.no_grad(), attached(layers, keys):
        for rows in context.mine(torch.arange(len(positions)).split(chunk)):
            said[rows] = model(pixel_values=shown(faces, positions[rows], mirrored[rows], context.device)).logits
    return context.accelerator.reduce(said, "sum").cpu()
