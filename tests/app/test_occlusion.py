"""The map is compared with a computation in numpy, window by window, for a model whose loss is known in closed form."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from oneshui_hf.app.occlusion import GRID, WINDOW, occlusion_map, strongest_place
from oneshui_hf.data.preprocess import Preprocess

SIZE, LABELS = 32, 3


class Linear(nn.Module):
    """Logits that are a linear function of the preprocessed photo."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, pixel_values: torch.Tensor) -> Any:
        return SimpleNamespace(logits=pixel_values.flatten(1) @ self.weights.T)


def by_hand(photo: np.ndarray, weights: np.ndarray, target: np.ndarray | int, preprocess: Preprocess, kind: str) -> np.ndarray:
    """The mean rise of the loss over the windows that cover each cell; float64, one photo at a time."""
    mean, std = (np.array(values).reshape(3, 1, 1) * 255 for values in (preprocess.mean, preprocess.std))

    def loss(pixels: np.ndarray) -> float:
        logits = weights @ ((pixels - mean) / std).ravel()
        if kind == "multi_label":
            return float(np.mean(np.logaddexp(0, logits) - target * logits))
        return float(np.logaddexp.reduce(logits) - logits[target])

    side, whole = SIZE // GRID, loss(photo.astype(float))
    rises: dict[tuple[int, int], list[float]] = {}
    for top in range(GRID - WINDOW + 1):
        for left in range(GRID - WINDOW + 1):
            covered = photo.astype(float)
            for channel in range(3):
                fill = np.round(photo[channel].mean())
                covered[channel, top * side : (top + WINDOW) * side, left * side : (left + WINDOW) * side] = fill
            for row in range(top, top + WINDOW):
                for column in range(left, left + WINDOW):
                    rises.setdefault((row, column), []).append(loss(covered) - whole)
    return np.array([[np.mean(rises[row, column]) for column in range(GRID)] for row in range(GRID)])


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_map_is_the_mean_rise_of_the_loss(kind: Any) -> None:
    random = np.random.default_rng(0)
    photo = random.integers(0, 256, (3, SIZE, SIZE)).astype(np.uint8)
    weights = random.normal(size=(LABELS, 3 * SIZE * SIZE)) / 40
    preprocess = Preprocess(SIZE)
    target: Any = np.array([1.0, 0.0, 1.0]) if kind == "multi_label" else 2
    found = occlusion_map(Linear(torch.tensor(weights).float()), photo, torch.tensor(target), preprocess, kind)
    np.testing.assert_allclose(found.numpy(), by_hand(photo, weights, target, preprocess, kind), atol=1e-4)


def test_only_windows_that_touch_what_the_model_reads_change_the_loss() -> None:
    weights = torch.zeros(1, 3, SIZE, SIZE)
    weights[0, :, 4:8, 24:28] = 1  # the cell in row 1, column 6
    photo = np.zeros((3, SIZE, SIZE), np.uint8)
    photo[:, 4:8, 24:28] = 255
    found = occlusion_map(Linear(weights.flatten(1)), photo, torch.tensor([1.0]), Preprocess(SIZE), "multi_label")
    assert (found > 0).nonzero().tolist() == [[row, column] for row in (0, 1, 2) for column in (5, 6, 7)]
    assert found.max() == found[1, 6]
    assert strongest_place(found) == "top right"
    assert strongest_place(torch.zeros(GRID, GRID)) is None


def test_a_map_does_not_change_the_model_or_the_photo() -> None:
    photo = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE)).astype(np.uint8)
    before = photo.copy()
    weights = torch.ones(2, 3 * SIZE * SIZE, requires_grad=True)
    occlusion_map(Linear(weights), photo, torch.tensor(1), Preprocess(SIZE), "single_label")
    assert np.array_equal(photo, before)
    assert weights.grad is None
