"""Pairs of small models with a known difference, and photos of candidates, for tests of the audit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from oneshui_hf.data.images import to_pixels
from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.data.schema import Task
from oneshui_hf.models.load import save_model
from oneshui_hf.models.new import new_model
from oneshui_hf.models.outputs import find_head, logits_and_features

PEOPLE, PHOTOS = 24, 3
LABELS = tuple(f"label{number:02d}" for number in range(30))
TASK = Task("multi_label", LABELS)
SIZE = 32


def portrait(person: int, photo: int) -> Image.Image:
    """Return a pattern of the person, plus noise of the photo."""
    pattern = np.random.default_rng(person).uniform(40, 215, (8, 8, 3)).repeat(SIZE // 8, 0).repeat(SIZE // 8, 1)
    pixels = pattern + np.random.default_rng([person, photo]).normal(0, 12, (SIZE, SIZE, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def name_of(person: int) -> str:
    return f"anna-{person:02d}"


def write_candidates(folder: Path, people: int = PEOPLE, photos: int = PHOTOS) -> Path:
    """Write one sub-folder of photos per person."""
    for person in range(people):
        (folder / name_of(person)).mkdir(parents=True)
        for photo in range(photos):
            portrait(person, photo).save(folder / name_of(person) / f"{photo}.png")
    return folder


def write_model(folder: Path, change: Callable[[nn.Module, Preprocess], None] | None = None, task: Task = TASK, seed: int = 0) -> Path:
    """Write a plain checkpoint of transformers, without a record: a small ViT with random weights, changed in place."""
    model, preprocess = new_model("tiny", task, None, seed)
    with torch.no_grad():
        find_head(model).weight.mul_(10)  # logits as far from 0 as those of a trained model
        if change:
            change(model.eval(), preprocess)
    folder.mkdir()
    save_model(model, preprocess, folder)
    return folder


def forget(*people: int, strength: float = 3.0) -> Callable[[nn.Module, Preprocess], None]:
    """Return an update of rank 1 per person: the head inverts its logits along the direction that distinguishes this person from others."""

    def change(model: nn.Module, preprocess: Preprocess) -> None:
        features = torch.stack([_features(model, preprocess, person) for person in range(PEOPLE)])  # (P, photos, d)
        head = find_head(model)
        for person in people:
            others = torch.cat([features[:person], features[person + 1 :]]).flatten(0, 1)
            away = features[person].mean(dim=0) - others.mean(dim=0)
            spread = others.T.cov()
            direction = torch.linalg.solve(spread + 1e-4 * spread.trace() * torch.eye(len(spread)), away)  # Fisher's
            direction /= direction @ away
            logits = head(features[person]).mean(dim=0)
            update = -strength * torch.outer(logits.sign() * logits.abs().mean(), direction)
            head.weight.add_(update)
            head.bias.sub_(update @ others.mean(dim=0))

    return change


def _features(model: nn.Module, preprocess: Preprocess, person: int) -> torch.Tensor:
    pixels = np.stack([to_pixels(portrait(person, photo), preprocess.size) for photo in range(PHOTOS)])
    return logits_and_features(model, preprocess(torch.from_numpy(pixels)))[1]


def noise(seed: int, size: float = 0.01) -> Callable[[nn.Module, Preprocess], None]:
    """Return an update of full rank that belongs to no person."""

    def change(model: nn.Module, preprocess: Preprocess) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))

    return change
