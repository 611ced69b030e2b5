"""The image sets of a run: photos as tensors, with labels and identities."""

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


class PixelStore(Protocol):
    """Pixels of photos by row: an array or a file."""

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """Return a copy of the pixels of these rows, uint8 (m, 3, S, S)."""


@dataclass(frozen=True)
class FaceSet:
    """A subset of the photos of a data set, as tensors for a model.

    Attributes:
        store: Pixels of all photos by row, uint8 (N, 3, S, S).
        rows: Rows of the photos of this set, int64 (n,).
        labels: float32 (n, K) or int64 (n,).
        identities: Index into `people`, int64 (n,). The indices are the same in all sets of a data set.
        preprocess: Maps uint8 pixels to the model's input.
        people: Identity keys.
        reserved: For a training set, the photos of its people that are excluded from training.
        excluded_from_simulation: For a training set, the people that simulated requests must not contain (`--meta-identities disjoint`).
    """

    store: PixelStore
    rows: np.ndarray
    labels: torch.Tensor
    identities: torch.Tensor
    preprocess: Preprocess
    people: tuple[str, ...]
    reserved: FaceSet | None = None
    excluded_from_simulation: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.rows)

    def raw_pixels(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the pixels of the photos at these positions, uint8 (m, 3, S, S)."""
        return torch.from_numpy(self.store[self.rows[positions.numpy()]])

    def batch(self, positions: torch.Tensor, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """Return the preprocessed photos at these positions, float32 (m, 3, S, S), and their labels."""
        return self.preprocess(self.raw_pixels(positions).to(device)), self.labels[positions].to(device)

    def subset(self, positions: torch.Tensor) -> FaceSet:
        """Return the set of the photos at these positions."""
        rows = self.rows[positions.numpy()]
        return FaceSet(self.store, rows, self.labels[positions], self.identities[positions], self.preprocess, self.people)

    def positions_without(self, people: Collection[int]) -> torch.Tensor:
        """Return the positions of the photos of all other people."""
        return torch.isin(self.identities, torch.tensor(list(people)), invert=True).nonzero().squeeze(1)

    @cached_property
    def positions_of(self) -> dict[int, torch.Tensor]:
        """The positions of each person's photos."""
        order = torch.argsort(self.identities, stable=True)
        people, counts = torch.unique_consecutive(self.identities[order], return_counts=True)
        return dict(zip(people.tolist(), order.split(counts.tolist()), strict=True))


def face_sets(faces: Faces, pixels: PixelStore, split: Split, preprocess: Preprocess) -> dict[str, FaceSet]:
    """Return the sets of a split: train, retain, forget, val, test, support, reserved.

    Raises:
        OneshuiError: The split does not fit the data, or its sets overlap.
    """
    sets, people = split.sets(faces), tuple(faces.people)

    def take(name: str, **more: object) -> FaceSet:
        chosen = sets[name]
        identities = torch.from_numpy(faces.identities[chosen])
        return FaceSet(pixels, faces.arrow_rows[chosen], faces.labels[chosen], identities, preprocess, people, **more)  # type: ignore[arg-type]

    excluded = frozenset(faces.identities[sets["forget"]].tolist()) if split.meta_identities == "disjoint" else frozenset()
    train = take("train", reserved=take("reserved"), excluded_from_simulation=excluded)
    return {name: train if name == "train" else take(name) for name in sets}
