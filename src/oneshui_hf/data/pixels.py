"""Pixels: decoded and resized once into one memory-mapped file beside the Arrow data, then gathered in batches."""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import OneshuiError
from ..reporting import SILENT, Reporter
from .images import ImageError, decode, to_pixels
from .schema import Faces

if TYPE_CHECKING:
    from .preprocess import Preprocess


def load_pixels(faces: Faces, size: int, reporter: Reporter = SILENT) -> np.ndarray:
    """Return all photos as uint8 (N, 3, size, size), memory-mapped; made on the first call.

    Raises:
        OneshuiError: A photo cannot be decoded (the message names it), or the file beside the Arrow data is damaged.
        OSError: There is no space left.
    """
    file = faces.cache / f"pixels-{size}.npy"
    if not file.exists():
        _build(faces, size, file, reporter)
    pixels = _open(file)
    if pixels is None or pixels.dtype != np.uint8 or pixels.shape != (len(faces), 3, size, size):
        raise OneshuiError(f"{file} does not fit its data set; remove it and run again.")
    return pixels


def _open(file: Path) -> np.ndarray | None:
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except ValueError:  # no array, or one that was cut off
        return None


def _build(faces: Faces, size: int, file: Path, reporter: Reporter) -> None:
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    os.close(handle)
    scratch = Path(name)
    try:
        pixels = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.uint8, shape=(len(faces), 3, size, size))
        _reserve(scratch)
        for row in reporter.track(range(len(faces)), "Reading photos"):
            image = faces.rows[row]["image"]
            where = f"photo {faces.keys[row]} of '{faces.name}'"
            pixels[row] = to_pixels(decode(image["bytes"] or image["path"], where), size)
        pixels.flush()
        del pixels
        scratch.replace(file)
    except ImageError as error:
        raise ImageError(f"{error} Repair it, or remove it and its annotation row.") from None
    finally:
        scratch.unlink(missing_ok=True)


def _reserve(file: Path) -> None:
    """Take the space of a file that is still empty: a disk that fills while mapped memory is written kills the process (SIGBUS)."""
    if not hasattr(os, "posix_fallocate"):
        return
    with file.open("r+b") as opened:
        try:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # these: the file system cannot reserve
                raise OSError(error.errno, error.strerror, str(file.parent)) from None


@dataclass(frozen=True)
class FaceSet:
    """Some photos of a data set, ready for a model.

    Attributes:
        store: All pixels, uint8 (N, 3, S, S).
        rows: Which of them, int64 (n,).
        labels: float32 (n, K) or int64 (n,).
        identities: Index of the person, int64 (n,). The same numbers in every set of a data set.
        preprocess: From uint8 to what the model takes.
        people: Identity keys, by number.
        reserved: For a training set, the photos of its people that are kept out of training.
    """

    store: np.ndarray
    rows: np.ndarray
    labels: torch.Tensor
    identities: torch.Tensor
    preprocess: Preprocess
    people: tuple[str, ...]
    reserved: FaceSet | None = None

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

    @cached_property
    def positions_of(self) -> dict[int, torch.Tensor]:
        """Positions of each person's photos."""
        order = torch.argsort(self.identities, stable=True)
        people, counts = torch.unique_consecutive(self.identities[order], return_counts=True)
        return dict(zip(people.tolist(), order.split(counts.tolist()), strict=True))


def face_sets(faces: Faces, sets: dict[str, np.ndarray], preprocess: Preprocess, reporter: Reporter = SILENT) -> dict[str, FaceSet]:
    """Return a FaceSet per set of a split."""
    store, people = load_pixels(faces, preprocess.size, reporter), tuple(faces.people)

    def take(name: str, reserved: FaceSet | None = None) -> FaceSet:
        rows = sets[name]
        identities = torch.from_numpy(faces.identities[rows])
        return FaceSet(store, rows, faces.labels[rows], identities, preprocess, people, reserved)

    reserved = take("reserved")
    return {name: take(name, reserved if name == "train" else None) for name in sets}
