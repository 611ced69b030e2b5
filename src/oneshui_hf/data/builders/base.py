"""The base class of the face builders: converts annotations to Arrow rows in the common schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pyarrow as pa

from ...errors import OneshuiError
from ...reporting import SILENT, Reporter
from ..near_names import describe_near_names
from ..schema import Exclusions, Task, dataset_features
from .layout import Layout

ROWS_PER_TABLE = 20_000


@dataclass(frozen=True)
class Annotations:
    """The identity and labels of every annotated photo, including missing photos.

    Attributes:
        keys: Photo names, N.
        images: A path or the encoded bytes of each photo; None if the photo is missing.
        identities: Identity keys, N.
        labels: int8 (N, K) of 0/1, or int64 (N,).
        exclusions: Photos that have no row or are excluded, by reason.
        extras: Additional columns, int32 (N,) or (N, k), by name; not used in training.
        depends_on_images: Whether the set of rows depends on the content of the photos.
    """

    keys: list[str]
    images: Sequence[str | bytes | None]
    identities: list[str]
    labels: np.ndarray
    exclusions: Exclusions = field(default_factory=Exclusions)
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    depends_on_images: bool = False

    def photos_by_identity(self) -> dict[str, list[str]]:
        """Return the photo keys of each person."""
        photos: dict[str, list[str]] = {}
        for key, person in zip(self.keys, self.identities, strict=True):
            photos.setdefault(person, []).append(key)
        return photos


class FaceBuilder(datasets.ArrowBasedBuilder):  # type: ignore[misc]
    """Base class of the builders. A subclass finds and reads its annotations."""

    VERSION = datasets.Version("1.1.0")
    summary: ClassVar[str] = ""
    reads_folder: ClassVar[bool] = True
    needs: ClassVar[str] = ""
    layout: ClassVar[Layout | None] = None
    reporter: Reporter = SILENT

    def task(self) -> Task:
        """Return the prediction task, without reading the rows."""
        raise OneshuiError(f"{type(self).__name__} does not implement `task`.")

    def annotations(self) -> Annotations:
        """Read all rows."""
        raise OneshuiError(f"{type(self).__name__} does not implement `annotations`.")

    def extras(self) -> dict[str, int]:
        """Return the columns in addition to the schema, each with its width."""
        return {}

    def photos_without_row(self) -> list[str] | None:
        """Return the photos without an annotation row, at every load. None: those that `annotations` excluded when they were read."""
        return None

    @classmethod
    def fingerprint(cls, data_dir: Path | None) -> str:
        """Return a hash of all inputs of the rows: annotation files, and the photos that they name. `datasets` does not check files."""
        raise OneshuiError(f"{cls.__name__} does not implement `fingerprint`.")

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(description=self.summary, features=dataset_features(self.task(), self.extras()))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator("train")]

    def _generate_tables(self) -> Iterator[tuple[int, pa.Table]]:
        annotations = self.annotations()
        present = [row for row, image in enumerate(annotations.images) if image is not None]
        keys, unused = annotations.keys, self.photos_without_row() if len(present) < len(annotations.keys) else None
        missing = sorted(set(range(len(keys))) - set(present))
        near = describe_near_names([keys[row] for row in missing], unused or [])
        if not present:
            if near:
                raise OneshuiError(f"None of the {len(keys)} annotated photos exists: {near}")
            content = f" Expected: {self.layout.content}." if self.layout else ""
            if not annotations.keys:
                raise OneshuiError(f"No photo occurs in all annotation files of '{self.name}'.{content}")
            raise OneshuiError(f"None of the {len(annotations.keys)} annotated photos (such as {annotations.keys[0]}) exists.{content}")
        exclusions = asdict(annotations.exclusions) | {"without_image": [keys[row] for row in missing]}
        exclusions["notes"] += [near] if near else []
        self.info.description = json.dumps(exclusions)  # `datasets` writes it next to the Arrow data
        schema, task = self.info.features.arrow_schema, self.task()
        for start in range(0, len(present), ROWS_PER_TABLE):
            yield start, _table(annotations, np.array(present[start : start + ROWS_PER_TABLE]), task).cast(schema)


def _table(annotations: Annotations, rows: np.ndarray, task: Task) -> pa.Table:
    images, labels = [annotations.images[row] for row in rows], annotations.labels[rows]
    as_bytes = isinstance(images[0], bytes)
    encoded = {
        "bytes": pa.array(images if as_bytes else [None] * len(images), pa.binary()),
        "path": pa.array([None] * len(images) if as_bytes else images, pa.string()),
    }
    if task.kind == "multi_label":
        arrays = [pa.array(labels[:, k].astype(np.int8)) for k in range(labels.shape[1])]
        column = pa.StructArray.from_arrays(arrays, names=list(task.label_names))
    else:
        column = pa.array(labels)
    extras = {
        name: pa.array(list(values[rows])) if values.ndim > 1 else pa.array(values[rows]) for name, values in annotations.extras.items()
    }
    return pa.table(
        {
            "key": pa.array([annotations.keys[row] for row in rows], pa.string()),
            "image": pa.StructArray.from_arrays(list(encoded.values()), names=list(encoded)),
            "identity": pa.array([annotations.identities[row] for row in rows], pa.string()),
            "labels": column,
            **extras,
        }
    )
