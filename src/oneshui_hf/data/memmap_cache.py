"""A cache of one record per photo, in a memory-mapped file next to the Arrow data.

The file is a NumPy array of records, each with a checksum of the record and its row number. It is written to a scratch file and then
renamed, so it is complete or missing: a process that is killed while writing leaves a scratch file, which the next process overwrites. If
two processes need the same file, one writes it and the other waits.
"""

from __future__ import annotations

import errno
import os
import shutil
import tokenize
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from filelock import FileLock

from ..errors import OneshuiError
from ..progress import gigabytes
from ..reporting import SILENT, Reporter

WORKERS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
BLOCK = 256  # records between two updates of the progress bar
LARGE = 10**9  # bytes of a file whose size is always reported, not on a terminal only


class MemmapCache:
    """The records of a file. The checksum of a row is verified when the row is first read."""

    def __init__(self, file: Path, array: np.ndarray) -> None:
        self.file, self.array = file, array
        self._verified = np.zeros(len(array), dtype=bool)

    def __len__(self) -> int:
        return len(self.array)

    def take(self, rows: np.ndarray, field: str | list[str]) -> np.ndarray:
        """Return a copy of one or several fields of these rows.

        Raises:
            OneshuiError: The checksum of a record is wrong.
        """
        for row in rows[~self._verified[rows]].tolist():
            if _checksum(self.array["record"][row], row) != self.array["checksum"][row]:
                raise OneshuiError(f"{self.file} is damaged at row {row}; remove it and run again.")
            self._verified[row] = True
        return self.array["record"][field][rows]


def load_memmap_cache(
    file: Path,
    dtype: np.dtype,
    count: int,
    make: Callable[[int], np.ndarray],
    label: str,
    reporter: Reporter = SILENT,
) -> MemmapCache:
    """Open the cache file; write it first if it does not exist.

    Args:
        file: Path of the cache file.
        dtype: Dtype of one record.
        count: Number of records.
        make: Returns the record of a row. Called from several threads.
        label: Label of the progress bar.
        reporter: For progress.

    Raises:
        OneshuiError: The file is not a cache file, or has another dtype or number of records; or the disk has no space for it.
        OSError: The disk became full meanwhile.
    """
    layout = np.dtype([("checksum", "<u4"), ("record", dtype)])
    if not file.exists():
        with FileLock(f"{file}.lock"):
            if not file.exists():  # another process may have written it in the meantime
                _require_space(file, layout.itemsize * count, reporter)
                _write(file, layout, count, make, label, reporter)
    array = _open(file)
    if array is None or array.dtype != layout or array.shape != (count,):
        raise OneshuiError(f"{file} does not fit its data set; remove it and run again.")
    return MemmapCache(file, array)


def _require_space(file: Path, size: int, reporter: Reporter) -> None:
    """Report the size of a file that is about to be written, and check that the disk has space for it.

    Raises:
        OneshuiError: It has not.
    """
    if (free := shutil.disk_usage(file.parent).free) < size:
        raise OneshuiError(
            f"{file.name} needs {gigabytes(size)} and {file.parent} has {gigabytes(free)} free; free space, or name a folder on a larger "
            "disk with HF_DATASETS_CACHE or HF_HOME."
        )
    (reporter.note if size >= LARGE else reporter.info)(f"Writing {file.name} in {file.parent}, {gigabytes(size)}.")


def _open(file: Path) -> np.ndarray | None:
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except (ValueError, SyntaxError, tokenize.TokenError):  # not an array, truncated, or a damaged header
        return None


def _write(file: Path, layout: np.dtype, count: int, make: Callable[[int], np.ndarray], label: str, reporter: Reporter) -> None:
    scratch = file.with_name(f".{file.name}.part")
    try:
        array = np.lib.format.open_memmap(scratch, mode="w+", dtype=layout, shape=(count,))
        _reserve(scratch)
        with ThreadPoolExecutor(WORKERS) as pool:
            for start in reporter.track(range(0, count, BLOCK), label):  # blocks limit the number of records in memory
                rows = range(start, min(start + BLOCK, count))
                for row, record in zip(rows, pool.map(make, rows), strict=True):
                    array[row] = (_checksum(record, row), record)
        array.flush()  # before renaming: after a power failure the named file must not contain zeros
        del array
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)


def _checksum(record: np.ndarray, row: int) -> int:
    return zlib.crc32(record.tobytes(), row)


def _reserve(file: Path) -> None:
    """Allocate the disk space of an empty file: if the disk fills while mapped memory is written, the process is killed (SIGBUS)."""
    if not hasattr(os, "posix_fallocate"):
        return
    with file.open("r+b") as opened:
        try:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # these mean that the file system cannot allocate
                raise OSError(error.errno, error.strerror, str(file.parent)) from None
