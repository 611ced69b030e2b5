"""Folds of identities, for cross-fitting: what predicts a photo must not have been trained on any photo of its identity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from oneshui_hf.methods import FaceSet


def assign_folds(train: FaceSet, folds: int, rng: torch.Generator) -> torch.Tensor:
    """Return the fold of each photo, (N,). All photos of an identity are in the same fold; folds have about equally many identities.

    Args:
        train: The training photos.
        folds: Number of folds.
        rng: Assigns the identities.
    """
    identities = sorted(train.positions_of)
    order = torch.randperm(len(identities), generator=rng).tolist()
    fold = {identities[index]: place % folds for place, index in enumerate(order)}
    return torch.tensor([fold[identity] for identity in train.identities.tolist()])
