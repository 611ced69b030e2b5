"""One record a photo, made once, in a memory-mapped file beside the Arrow data.

The file is a NumPy array of records, each behind a checksum of its own and its row's number. It appears by renaming, whole or not at
all: a process that is killed while it makes one leaves a scratch file that the next one overwrites. Of two processes that want the same
file, one makes it and the other waits.
"""

from __future__ import annotations

import errno
import os
import tokenize
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from filelock import FileLock

from ..errors import OneshuiError
from ..reporting import SILENT, Reporter

WORKERS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
BLOCK = 256  # records made between two looks at the progress bar


class Records:
    """The records of a file; a row is checked when it is first read."""

    def __init__(self, file: Path, stored: np.ndarray) -> None:
        self.file, self.stored = file, stored
        self._trusted = np.zeros(len(stored), dtype=bool)

    def __len__(self) -> int:
        return len(self.stored)

    def take(self, rows: np.ndarray, field: str | list[str]) -> np.ndarray:
        """Return a copy of a field of these rows, or of several.

        Raises:
            OneshuiError: A record is not as it was written.
        """
        for row in rows[~self._trusted[rows]].tolist():
            if _checksum(self.stored["record"][row], row) != self.stored["checksum"][row]:
                raise OneshuiError(f"{self.file} is damaged at row {row}; remove it and run again.")
            self._trusted[row] = True
        return self.stored["record"][field][rows]


def load_records(
    file: Path,
    dtype: np.dtype,
    count: int,
    make: Callable[[int], np.ndarray],
    label: str,
    reporter: Reporter = SILENT,
) -> Records:
    """Open the file, or make it first.

    Args:
        file: Where it is or is to be.
        dtype: Of one record.
        count: How many there are.
        make: Returns the record of a row. Called from several threads.
        label: What the progress bar says.
        reporter: For progress.

    Raises:
        OneshuiError: The file is of another shape, or no such file.
        OSError: There is no space left.
    """
    layout = np.dtype([("checksum", "<u4"), ("record", dtype)])
    if not file.exists():
        with FileLock(f"{file}.lock"):
            if not file.exists():  # another process may have made it meanwhile
                _build(file, layout, count, make, label, reporter)
    stored = _open(file)
    if stored is None or stored.dtype != layout or stored.shape != (count,):
        raise OneshuiError(f"{file} does not fit its data set; remove it and run again.")
    return Records(file, stored)


def _open(file: Path) -> np.ndarray | None:
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except (ValueError, SyntaxError, tokenize.TokenError):  # no array, one that was cut off, or one with a damaged header
        return None


def _build(file: Path, layout: np.dtype, count: int, make: Callable[[int], np.ndarray], label: str, reporter: Reporter) -> None:
    scratch = file.with_name(f".{file.name}.part")
    try:
        stored = np.lib.format.open_memmap(scratch, mode="w+", dtype=layout, shape=(count,))
        _reserve(scratch)
        with ThreadPoolExecutor(WORKERS) as pool:
            for start in reporter.track(range(0, count, BLOCK), label):  # in blocks, so that finished records do not pile up in memory
                rows = range(start, min(start + BLOCK, count))
                for row, record in zip(rows, pool.map(make, rows), strict=True):
                    stored[row] = (_checksum(record, row), record)
        stored.flush()  # to the disk, before the name: a power cut must not leave a named file of zeros
        del stored
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)


def _checksum(record: np.ndarray, row: int) -> int:
    return zlib.crc32(record.tobytes(), row)


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
