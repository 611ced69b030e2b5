"""A set of a run: photos as tensors, with labels and identities."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from .schema import Faces

if TYPE_CHECKING:
    from .preprocess import Preprocess
    from .split import Split


class Store(Protocol):
    """Photos by row: an array of pixels, or a file of them."""

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """Return a copy of the pixels of these rows, uint8 (m, 3, S, S)."""


@dataclass(frozen=True)
class FaceSet:
    """Some photos of a data set, ready for a model.

    Attributes:
        store: All pixels by row, uint8 (N, 3, S, S).
        rows: Which of them, int64 (n,).
        labels: float32 (n, K) or int64 (n,).
        identities: Index of the person, int64 (n,). The same numbers in every set of a data set.
        preprocess: From uint8 to what the model takes.
        people: Identity keys, by number.
        reserved: For a training set, the photos of its people that are kept out of training.
        spared: For a training set, the people whom preparation must not let ask (`--meta-identities disjoint`).
    """

    store: Store
    rows: np.ndarray
    labels: torch.Tensor
    identities: torch.Tensor
    preprocess: Preprocess
    people: tuple[str, ...]
    reserved: FaceSet | None = None
    spared: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.rows)

    def raw(self, positions: torch.Tensor) -> torch.Tensor:
        """Return photos as uint8 (m, 3, S, S)."""
        return torch.from_numpy(self.store[self.rows[positions.numpy()]])

    def batch(self, positions: torch.Tensor, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """Return the photos at these positions as the model takes them, float (m, 3, S, S), and their labels."""
        return self.preprocess(self.raw(positions).to(device)), self.labels[positions].to(device)

    def subset(self, positions: torch.Tensor) -> FaceSet:
        """Return the set of the photos at these positions."""
        rows = self.rows[positions.numpy()]
        return FaceSet(self.store, rows, self.labels[positions], self.identities[positions], self.preprocess, self.people)

    def without(self, people: Collection[int]) -> torch.Tensor:
        """Return the positions of everybody else's photos."""
        return torch.isin(self.identities, torch.tensor(list(people)), invert=True).nonzero().squeeze(1)

    @cached_property
    def positions_of(self) -> dict[int, torch.Tensor]:
        """Positions of each person's photos."""
        order = torch.argsort(self.identities, stable=True)
        people, counts = torch.unique_consecutive(self.identities[order], return_counts=True)
        return dict(zip(people.tolist(), order.split(counts.tolist()), strict=True))


def face_sets(faces: Faces, pixels: Store, split: Split, preprocess: Preprocess) -> dict[str, FaceSet]:
    """Return a FaceSet per set of a split: train, retain, forget, val, test, support, reserved.

    Raises:
        OneshuiError: The split does not fit the data, or lets one set leak into another.
    """
    sets, people = split.sets(faces), tuple(faces.people)

    def take(name: str, **more: object) -> FaceSet:
        chosen = sets[name]
        identities = torch.from_numpy(faces.identities[chosen])
        return FaceSet(pixels, faces.stored[chosen], faces.labels[chosen], identities, preprocess, people, **more)  # type: ignore[arg-type]

    spared = frozenset(faces.identities[sets["forget"]].tolist()) if split.meta_identities == "disjoint" else frozenset()
    train = take("train", reserved=take("reserved"), spared=spared)
    return {name: train if name == "train" else take(name) for name in sets}
