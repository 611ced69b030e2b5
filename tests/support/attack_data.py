"""Random scores, labels and signals for tests of membership inference attacks."""

from __future__ import annotations

import torch

from oneshui_hf.data.schema import TaskKind
from oneshui_hf.metrics.attack_signals import Signals


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def labels_of(kind: TaskKind, count: int, width: int, generator: torch.Generator) -> torch.Tensor:
    if kind == "multi_label":
        return (torch.rand(count, width, generator=generator) < 0.4).float()
    return torch.randint(width, (count,), generator=generator)


def two_groups(people: tuple[int, int] = (10, 30), photos: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the identity of each member photo and of each non-member photo."""
    return torch.arange(people[0]).repeat_interleave(photos), 1000 + torch.arange(people[1]).repeat_interleave(photos)


def face_signals(
    generator: torch.Generator, ids: torch.Tensor, width: int, gain: float = 1.0, versions: int = 1, references: int = 2
) -> Signals:
    """Logits of the true values: a photo effect plus a model effect; the attacked model's losses are multiplied by `gain`."""
    easy = 2 + normal(generator, int(ids.max()) + 1, width)[ids] + normal(generator, len(ids), width)

    def model() -> torch.Tensor:
        return easy + 0.5 * normal(generator, versions, len(ids), width)

    return Signals(
        gain * torch.nn.functional.logsigmoid(model()), torch.nn.functional.logsigmoid(torch.stack([model() for _ in range(references)]))
    )
