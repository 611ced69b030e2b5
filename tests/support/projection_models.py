"""Small networks and random photos for the tests of PGU and of input covariances."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from oneshui_hf.data.schema import Task
from oneshui_hf.methods import Context, seeded
from oneshui_plugins.common.input_covariance import Covariance, input_covariances

TASKS = {
    "multi_label": Task("multi_label", ("a", "b", "c", "d", "e")),
    "single_label": Task("single_label", ("a", "b", "c", "d", "e")),
}


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labels_for(count: int, kind: str, dtype: torch.dtype = torch.float64, seed: int = 5) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    if kind == "multi_label":
        return torch.randint(0, 2, (count, 5), generator=rng).to(dtype)
    return torch.randint(0, 5, (count,), generator=rng)


def context(kind: str = "multi_label", accelerator: Any = None) -> Context:
    return Context(TASKS[kind], 0, accelerator or Accelerator(cpu=True))  # type: ignore[index]


def covariances_of(model: nn.Module, pixels: torch.Tensor, chunk: int = 3, accelerator: Any = None) -> dict[str, Covariance]:
    return input_covariances(model, len(pixels), lambda rows: pixels[rows], chunk, context(accelerator=accelerator))


def mean_outer_product(rows: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean of x x^T, row by row."""
    return sum((torch.outer(x, x) for x in rows), torch.zeros(len(rows[0]), len(rows[0]), dtype=rows[0].dtype)) / len(rows)


def model_output(logits: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(logits=logits)


class Flat(nn.Module):
    """One linear layer on the pixels of photos (3, 2, 2)."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(0, "flat"):
            self.head = nn.Linear(12, 5).double()

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return model_output(self.head(pixel_values.flatten(1)))


class Tokens(nn.Module):
    """A small network with a patch embedding, a layer over tokens, a grouped convolution, norms, dropout, and a token parameter."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(0, "tokens"):
            self.patch = nn.Conv2d(3, 8, 4, stride=4)
            self.local = nn.Conv2d(8, 8, 3, padding=1, groups=4)
            self.norm = nn.BatchNorm2d(8)
            self.token = nn.Parameter(torch.randn(8))
            self.mix = nn.Linear(8, 8)
            self.drop = nn.Dropout(0.5)
            self.never_used, self.unused_output = nn.Linear(8, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 5)
        self.double()

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        x = self.norm(self.local(self.patch(pixel_values).tanh()))
        x = self.drop(self.mix(x.flatten(2).mT + self.token))
        self.unused_output(x)  # like a pooler whose output the head does not use
        return model_output(self.head(x.tanh().mean(1)))


def low_rank(count: int, rank: int, shape: tuple[int, ...] = (3, 2, 2)) -> torch.Tensor:
    """Return photos in a subspace of the given rank."""
    basis = noise(rank, int(torch.tensor(shape).prod()), seed=1)
    return (noise(count, rank, seed=2) @ basis).unflatten(1, shape)


class Twice(nn.Module):
    """One layer used twice in a pass, and another one that is tied to it."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(0, "twice"):
            self.first, self.tied, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 5)
        self.tied.weight = self.first.weight
        self.double()

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        x = pixel_values.flatten(1)
        return model_output(self.head(self.tied(self.first(self.first(x).tanh()).tanh()).tanh()))
