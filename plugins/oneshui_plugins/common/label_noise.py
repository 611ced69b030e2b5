"""Random labels that differ from the given ones."""

from __future__ import annotations

import torch


def sample_other_class(labels: torch.Tensor, num_classes: int, rng: torch.Generator) -> torch.Tensor:
    """Return, for each label (n,), another class, all others with equal probability."""
    offset = torch.randint(1, num_classes, labels.shape, generator=rng).to(labels)
    return (labels + offset) % num_classes
