"""Decodes and resizes all photos once, into one memory-mapped file next to the Arrow data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import OneshuiError
from ..reporting import SILENT, Reporter
from .image_modes import is_nearly_constant
from .images import ImageError, decode, to_pixels
from .memmap_cache import MemmapCache, load_memmap_cache
from .schema import Faces

MAX_NAMED = 5  # unreadable photos named in a warning


@dataclass(frozen=True)
class PixelCache:
    """All photos of a data set at one size, uint8 (N, 3, S, S), in a memory-mapped file."""

    cache: MemmapCache

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """Return a copy of the pixels of these rows of the Arrow data, uint8 (m, 3, S, S).

        Raises:
            OneshuiError: The checksum of a row is wrong.
        """
        return self.cache.take(rows, "pixels")

    def unreadable_rows(self) -> np.ndarray:
        """Return the rows of photos that could not be decoded."""
        return np.flatnonzero(~self.cache.array["record"]["readable"])


def load_pixels(faces: Faces, size: int, reporter: Reporter = SILENT) -> tuple[Faces, PixelCache]:
    """Return the data set without photos that cannot be decoded, and all photos at one size.

    The first call writes the pixel file. Photos that cannot be decoded are excluded, with a warning that counts and names them.

    Raises:
        OneshuiError: No photo can be decoded, or the pixel file is damaged.
        OSError: There is no disk space left.
    """
    layout = np.dtype([("readable", "?"), ("pixels", "u1", (3, size, size))])
    constant: list[int] = []

    def make(row: int) -> np.ndarray:
        record = np.zeros((), dtype=layout)
        try:
            record["pixels"] = to_pixels(decode(faces.encoded_image(row), "it"), size)
            record["readable"] = True
            if is_nearly_constant(record["pixels"]):
                constant.append(row)
        except ImageError:
            pass  # stays unreadable, all zeros; every load warns about it below
        return record

    file = faces.cache / f"pixels-{size}.npy"
    pixels = PixelCache(load_memmap_cache(file, layout, len(faces.arrow_dataset), make, "Reading photos", reporter))
    if constant:
        _warn_constant(faces, constant, reporter)
    if (bad := np.intersect1d(pixels.unreadable_rows(), faces.arrow_rows)).size:
        _warn_unreadable(faces, pixels, bad, reporter)
        faces = faces.drop_rows(bad)
    return faces, pixels


def _warn_constant(faces: Faces, rows: list[int], reporter: Reporter) -> None:
    """Warn about photos that show nothing, when the pixel file is written."""
    name = dict(zip(faces.arrow_rows.tolist(), faces.keys, strict=True))
    keys = [name[row] for row in sorted(rows) if row in name]
    if keys:
        more = f" and {len(keys) - MAX_NAMED} more" if len(keys) > MAX_NAMED else ""
        what = "1 photo has" if len(keys) == 1 else f"{len(keys)} photos have"
        reporter.warn(f"{what} nearly the same colour everywhere and may show nobody: {', '.join(keys[:MAX_NAMED])}{more}.")


def _warn_unreadable(faces: Faces, pixels: PixelCache, bad: np.ndarray, reporter: Reporter) -> None:
    """Warn about photos that cannot be decoded.

    Raises:
        OneshuiError: No photo can be decoded.
    """
    name = dict(zip(faces.arrow_rows.tolist(), faces.keys, strict=True))
    reasons = []
    for row in bad[:MAX_NAMED].tolist():
        try:
            decode(faces.encoded_image(row), f"photo {name[row]}")
            reasons.append(f"photo {name[row]} could not be read when the pixel file was written; remove {pixels.cache.file} to try again.")
        except ImageError as error:
            reasons.append(str(error))
    if len(bad) == len(faces):
        raise OneshuiError(f"None of the {len(bad)} photos of '{faces.name}' can be read: {reasons[0]}")
    more = f" And {len(bad) - MAX_NAMED} more; `oneshui data check` lists them." if len(bad) > MAX_NAMED else ""
    reporter.warn(f"{len(bad)} of {len(faces)} photos of '{faces.name}' cannot be read and are excluded: {' '.join(reasons)}{more}")
