"""Where on a photo a prediction depends on: the loss rises where a part that matters is covered.

A window of `WINDOW` by `WINDOW` cells of a grid is filled with the photo's mean colour, at every position of the grid in turn (Zeiler and
Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014). The value of a cell is the mean rise of the loss over the windows
that cover it. The loss refers to fixed labels, so that the maps of two models can be subtracted.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..data.preprocess import Preprocess
from ..data.schema import TaskKind
from ..models.outputs import losses, require_finite_logits

GRID, WINDOW = 8, 2  # cells a side of the photo, and of the window
BATCH = 16
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")


def occlusion_map(model: nn.Module, pixels: np.ndarray, labels: torch.Tensor, preprocess: Preprocess, kind: TaskKind) -> torch.Tensor:
    """Return the rise of the loss for each cell, (GRID, GRID), on the CPU.

    Args:
        model: A classifier, in evaluation mode.
        pixels: The photo, uint8 (3, S, S), with S of at least `GRID`.
        labels: The labels that the loss refers to: (K,) for attributes, () for a class.
        preprocess: Of the model.
        kind: Of the task.
    """
    edges = np.linspace(0, pixels.shape[1], GRID + 1).round().astype(int)
    fill = pixels.mean(axis=(1, 2), keepdims=True).round().astype(np.uint8)
    places = [(row, column) for row in range(GRID - WINDOW + 1) for column in range(GRID - WINDOW + 1)]
    photos = [pixels]
    for row, column in places:
        covered = pixels.copy()
        covered[:, edges[row] : edges[row + WINDOW], edges[column] : edges[column + WINDOW]] = fill
        photos.append(covered)
    found = _losses(model, np.stack(photos), labels, preprocess, kind)
    total, windows = torch.zeros(GRID, GRID), torch.zeros(GRID, GRID)
    for (row, column), rise in zip(places, (found[1:] - found[0]).tolist(), strict=True):
        total[row : row + WINDOW, column : column + WINDOW] += rise
        windows[row : row + WINDOW, column : column + WINDOW] += 1
    return total / windows


def _losses(model: nn.Module, photos: np.ndarray, labels: torch.Tensor, preprocess: Preprocess, kind: TaskKind) -> torch.Tensor:
    """Return the loss of each photo, uint8 (n, 3, S, S), for the same labels: (n,)."""
    device = labels.device
    parts = []
    with torch.no_grad():
        for batch in torch.from_numpy(photos).split(BATCH):
            logits = require_finite_logits(model(pixel_values=preprocess(batch.to(device))).logits)
            parts.append(losses(logits, labels.expand(len(batch), *labels.shape), kind).cpu())
    return torch.cat(parts)


def strongest_place(grid: torch.Tensor) -> str | None:
    """Return where the cell of the largest size is, such as "top left", for people who cannot see the map; None if nothing matters."""
    size = grid.abs()
    if size.max() < 1e-6:
        return None
    row, column = divmod(int(size.argmax()), grid.shape[1])
    vertical, horizontal = ROWS[3 * row // grid.shape[0]], COLUMNS[3 * column // grid.shape[1]]
    return "centre" if (vertical, horizontal) == ("middle", "centre") else f"{vertical} {horizontal}"
