"""Pixels: decoded and resized once into one memory-mapped file beside the Arrow data, then gathered in batches."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from ..errors import OneshuiError
from ..reporting import SILENT, Reporter
from .images import ImageError, decode, to_pixels
from .records import Records, load_records
from .schema import Faces

if TYPE_CHECKING:
    from .preprocess import Preprocess
    from .split import Split

NAMED = 5  # photos that are named one by one where many cannot be decoded


class Store(Protocol):
    """Photos by row: an array of pixels, or a file of them."""

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """Return a copy of the pixels of these rows, uint8 (m, 3, S, S)."""


@dataclass(frozen=True)
class Pixels:
    """All photos of a data set at one size, uint8 (N, 3, S, S), in a memory-mapped file."""

    records: Records

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """Return a copy of the pixels of these rows of the Arrow data, uint8 (m, 3, S, S).

        Raises:
            OneshuiError: A row is not as it was written.
        """
        return self.records.take(rows, "pixels")

    def unreadable(self) -> np.ndarray:
        """Return the rows whose photo could not be decoded."""
        return np.flatnonzero(~self.records.stored["record"]["readable"])


def load_pixels(faces: Faces, size: int, reporter: Reporter = SILENT) -> tuple[Faces, Pixels]:
    """Return all photos at one size, made on the first call, and the data set without those that cannot be decoded.

    A photo that cannot be decoded ends nothing: it is left out, counted and named.

    Raises:
        OneshuiError: No photo can be decoded, or the file beside the Arrow data is damaged.
        OSError: There is no space left.
    """
    layout = np.dtype([("readable", "?"), ("pixels", "u1", (3, size, size))])

    def make(row: int) -> np.ndarray:
        record = np.zeros((), dtype=layout)
        try:
            record["pixels"] = to_pixels(decode(faces.image(row), "it"), size)
            record["readable"] = True
        except ImageError:
            pass  # stays unreadable, all zeros; told below, on every load
        return record

    file = faces.cache / f"pixels-{size}.npy"
    pixels = Pixels(load_records(file, layout, len(faces.rows), make, "Reading photos", reporter))
    if (bad := np.intersect1d(pixels.unreadable(), faces.stored)).size:
        _tell(faces, pixels, bad, reporter)
        faces = faces.without(bad)
    return faces, pixels


def _tell(faces: Faces, pixels: Pixels, bad: np.ndarray, reporter: Reporter) -> None:
    """Say which photos are left out.

    Raises:
        OneshuiError: No other is left.
    """
    name = dict(zip(faces.stored.tolist(), faces.keys, strict=True))
    reasons = []
    for row in bad[:NAMED].tolist():
        try:
            decode(faces.image(row), f"photo {name[row]}")
            reasons.append(f"photo {name[row]} could not be read at first; remove {pixels.records.file} to try again.")
        except ImageError as error:
            reasons.append(str(error))
    if len(bad) == len(faces):
        raise OneshuiError(f"None of the {len(bad)} photos of '{faces.name}' can be read: {reasons[0]}")
    more = f" And {len(bad) - NAMED} more; `oneshui data check` lists them." if len(bad) > NAMED else ""
    reporter.warn(f"{len(bad)} of {len(faces)} photos of '{faces.name}' cannot be read and are left out: {' '.join(reasons)}{more}")


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
