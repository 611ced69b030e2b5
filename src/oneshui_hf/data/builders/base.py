"""What the face builders share: annotations in, Arrow rows in the one schema out."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa

from ...errors import OneshuiError, UsageError
from ..schema import Task, features

ROWS_PER_TABLE = 20_000


@dataclass(frozen=True)
class Annotations:
    """Who is on which photo, and what it shows.

    Attributes:
        keys: Photo names, N.
        images: Per photo, a path or the encoded bytes.
        identities: Identity keys, N.
        labels: int8 (N, K) of 0/1, or int64 (N,).
        notes: What was left out, in sentences.
    """

    keys: list[str]
    images: list[str] | list[bytes]
    identities: list[str]
    labels: np.ndarray
    notes: tuple[str, ...] = ()


class FaceBuilder(datasets.ArrowBasedBuilder):  # type: ignore[misc]
    """Base of the builders: a subclass says how to find and read its annotations."""

    VERSION = datasets.Version("1.0.0")
    summary: ClassVar[str] = ""
    reads_folder: ClassVar[bool] = True
    needs: ClassVar[str] = ""

    def task(self) -> Task:
        """Return what is predicted, without reading the rows."""
        raise OneshuiError(f"{type(self).__name__} does not say what its labels are.")

    def annotations(self) -> Annotations:
        """Read all rows."""
        raise OneshuiError(f"{type(self).__name__} does not say how to read its rows.")

    @classmethod
    def fingerprint(cls, data_dir: Path | None) -> str:
        """Return a hash of everything that the rows are made from: `datasets` does not look at files by itself."""
        raise OneshuiError(f"{cls.__name__} does not say what its rows are made from.")

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(description=self.summary, features=features(self.task()))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator("train")]

    def _generate_tables(self) -> Iterator[tuple[int, pa.Table]]:
        found = self.annotations()
        self.info.description = "\n".join(found.notes)
        schema = self.info.features.arrow_schema
        task = self.task()
        for start in range(0, len(found.keys), ROWS_PER_TABLE):
            part = slice(start, start + ROWS_PER_TABLE)
            yield start, _table(found, part, task).cast(schema)


def _table(found: Annotations, part: slice, task: Task) -> pa.Table:
    images, labels = found.images[part], found.labels[part]
    as_bytes = bool(images) and isinstance(images[0], bytes)
    encoded = {
        "bytes": pa.array(images if as_bytes else [None] * len(images), pa.binary()),
        "path": pa.array([None] * len(images) if as_bytes else images, pa.string()),
    }
    if task.kind == "multi_label":
        arrays = [pa.array(labels[:, k].astype(np.int8)) for k in range(labels.shape[1])]
        column = pa.StructArray.from_arrays(arrays, names=list(task.label_names))
    else:
        column = pa.array(labels)
    return pa.table(
        {
            "key": pa.array(found.keys[part], pa.string()),
            "image": pa.StructArray.from_arrays(list(encoded.values()), names=list(encoded)),
            "identity": pa.array(found.identities[part], pa.string()),
            "labels": column,
        }
    )


def hash_files(files: list[Path], folder: Path) -> str:
    """Return a hash of the annotation files' contents and of the image folder's names, sizes and times of change."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    for name, size, changed in walk(folder):
        digest.update(os.fsencode(f"{name}\0{size}\0{changed}\n"))
    return digest.hexdigest()[:32]


def walk(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Yield (path below the folder, size, time of change in ns) of every file, in the same order on every machine.

    Links are followed, each folder is entered once, and a link that leads nowhere is no file.
    """
    stack, entered = [str(folder)], set()
    start = len(os.path.join(folder, ""))  # noqa: PTH118 - of 200,000 paths, cutting the text is faster than relative_to
    while stack:
        current = stack.pop()
        if (real := Path(current).resolve()) in entered:
            continue
        entered.add(real)
        with os.scandir(current) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                try:
                    status = entry.stat()
                except OSError:  # a link to nothing or to itself, or a file that was removed meanwhile
                    continue
                if stat.S_ISDIR(status.st_mode):
                    stack.append(entry.path)
                else:
                    yield entry.path[start:], status.st_size, status.st_mtime_ns


def require_data_dir(data_dir: str | None, name: str, tree: str) -> Path:
    """Return the data folder.

    Raises:
        UsageError: None was given, or it does not exist.
    """
    if not data_dir:
        raise UsageError(f"Data set '{name}' is read from a folder on disk: name it with --data-dir. Expected there:\n{tree}")
    path = Path(data_dir).expanduser()
    if not path.is_dir():
        raise UsageError(f"--data-dir {data_dir} is not a folder. Expected there for '{name}':\n{tree}")
    return path
