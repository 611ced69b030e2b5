"""Random labels that differ from the given ones."""

from __future__ import annotations

import torch


def sample_other_class(labels: torch.Tensor, num_classes: int, rng: torch.Generator) -> torch.Tensor:
    """Return, for each label (n,), another class, all others with equal probability."""
    offset = torch.randint(1, num_classes, labels.shape, generator=rng).to(labels)
    return (labels + offset) % num_classes


def flip_attributes(labels: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Return other attributes for each photo (n, K): each flips with p = 0.5; a photo is resampled if none of its attributes flips."""
    flips = torch.zeros_like(labels)
    while len(unchanged := (flips.sum(dim=1) == 0).nonzero().squeeze(1)):
        flips[unchanged] = torch.randint(0, 2, (len(unchanged), labels.shape[1]), generator=rng).to(labels)
    return (labels - flips).abs()
