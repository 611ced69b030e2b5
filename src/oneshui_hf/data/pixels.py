"""Pixels: decoded and resized once into one memory-mapped file beside the Arrow data, then gathered in batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import OneshuiError
from ..reporting import SILENT, Reporter
from .images import ImageError, decode, to_pixels
from .memmap_cache import Records, load_records
from .schema import Faces

if TYPE_CHECKING:
    pass

NAMED = 5  # photos that are named one by one where many cannot be decoded


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
