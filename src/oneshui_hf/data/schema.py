"""The schema of all data sets, and their in-memory index.

Rows are {key, image, identity, labels}: `key` is the name of the photo within its data set (its file name), `identity` the person, `labels`
a struct of 0/1 per attribute (multi-label) or one class (single-label).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import torch

TaskKind = Literal["multi_label", "single_label"]


@dataclass(frozen=True)
class Task:
    """The prediction task."""

    kind: TaskKind
    label_names: tuple[str, ...]

    @property
    def score_name(self) -> str:
        """The main metric of this task: "map" or "accuracy"."""
        return "map" if self.kind == "multi_label" else "accuracy"

    @property
    def problem_type(self) -> str:
        """The name of the task in the config of a transformers model."""
        return f"{self.kind}_classification"


@dataclass(frozen=True)
class Exclusions:
    """The photos that were excluded when a data set was read, by name.

    Attributes:
        without_image: Annotated photos whose image is missing.
        without_row: Photos without an annotation row.
        without_identity: Photos without an identity.
        near_duplicates: Near-duplicates of other photos, if the subset excludes them.
        notes: Sentences that state what was inferred.
    """

    without_image: list[str] = field(default_factory=list)
    without_row: list[str] = field(default_factory=list)
    without_identity: list[str] = field(default_factory=list)
    near_duplicates: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def messages(self) -> tuple[str, ...]:
        """Return sentences for the user."""
        descriptions = {
            "without_image": "annotated photos without an image",
            "without_row": "photos without an annotation row",
            "without_identity": "photos without an identity",
            "near_duplicates": "near-duplicates",
        }
        counts = [f"{what} ({len(getattr(self, name)):,})" for name, what in descriptions.items() if getattr(self, name)]
        return (*self.notes, f"Excluded: {', '.join(counts)}.") if counts else tuple(self.notes)


@dataclass(frozen=True)
class Faces:
    """The in-memory index of a data set, without pixels.

    Attributes:
        name: The builder's name, or the folder's.
        task: The prediction task.
        keys: Photo names, N.
        identities: Index into `people`, int64 (N,).
        people: Identity keys, sorted.
        labels: float32 (N, K) of 0/1, or int64 (N,).
        arrow_dataset: The Arrow data set; its image column is not decoded.
        arrow_rows: Its row of each photo, int64 (N,). Rows whose photo cannot be decoded are absent.
        cache: The folder next to the Arrow data, for files derived from it.
        exclusions: The photos that were excluded when it was read.
    """

    name: str
    task: Task
    keys: list[str]
    identities: np.ndarray
    people: list[str]
    labels: torch.Tensor
    arrow_dataset: datasets.Dataset
    arrow_rows: np.ndarray
    cache: Path
    exclusions: Exclusions = field(default_factory=Exclusions)

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def _images(self) -> Any:
        """The column of photos. Making it takes as long as the table has parts, so it is made once."""
        return self.arrow_dataset.data.column("image")

    def encoded_image(self, row: int) -> str | bytes:
        """Return the photo in a row of the Arrow data: its path or its encoded bytes; empty bytes if the row has no photo."""
        image = self._images[row].as_py() or {}
        return image.get("bytes") or image.get("path") or b""

    def photos_by_identity(self) -> dict[str, list[str]]:
        """Return the photo keys of each person."""
        photos: dict[str, list[str]] = {person: [] for person in self.people}
        for key, identity in zip(self.keys, self.identities.tolist(), strict=True):
            photos[self.people[identity]].append(key)
        return photos

    def drop_rows(self, rows: np.ndarray) -> Faces:
        """Return the data set without the photos in these rows of the Arrow data, and without people who have no other photo."""
        import numpy as np

        kept = np.flatnonzero(~np.isin(self.arrow_rows, rows))
        numbers, identities = np.unique(self.identities[kept], return_inverse=True)
        return replace(
            self,
            keys=[self.keys[i] for i in kept],
            identities=identities.astype(np.int64),
            people=[self.people[i] for i in numbers],
            labels=self.labels[kept],
            arrow_rows=self.arrow_rows[kept],
        )

    @property
    def fingerprint(self) -> str:
        """A hash of photo names, people and labels, independent of the machine and of the order of rows."""
        dtype = "int8" if self.task.kind == "multi_label" else "<i8"  # attributes are 0 and 1; there may be many classes
        labels = self.labels.reshape(len(self), -1).numpy().astype(dtype)
        digest = hashlib.sha256("\n".join(self.task.label_names).encode())
        for row in sorted(range(len(self)), key=self.keys.__getitem__):
            digest.update(f"{self.keys[row]}\0{self.people[self.identities[row]]}\0".encode())
            digest.update(labels[row].tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return the description of the data in the record of a run."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "task": self.task.kind,
            "labels": list(self.task.label_names),
            "images": len(self),
            "identities": len(self.people),
        }


def dataset_features(task: Task, extras: Mapping[str, int] | None = None) -> datasets.Features:
    """Return the schema of a task. `extras` are additional columns of integers, each with its width."""
    from datasets import ClassLabel, Features, Image, List, Value

    labels: Any = ClassLabel(names=list(task.label_names))
    if task.kind == "multi_label":
        labels = {name: Value("int8") for name in task.label_names}
    additional = {name: Value("int32") if width == 1 else List(Value("int32"), length=width) for name, width in (extras or {}).items()}
    return Features({"key": Value("string"), "image": Image(), "identity": Value("string"), "labels": labels, **additional})


def index_dataset(dataset: datasets.Dataset, name: str, cache: Path, exclusions: Exclusions) -> Faces:
    """Return the in-memory index of a data set in the schema."""
    import datasets
    import numpy as np
    import torch

    label_feature = dataset.features["labels"]
    table = dataset.data.table
    if isinstance(label_feature, datasets.ClassLabel):
        task = Task("single_label", tuple(label_feature.names))
        labels = torch.from_numpy(table.column("labels").to_numpy().astype(np.int64))
    else:
        task = Task("multi_label", tuple(label_feature))
        flat = table.select(["labels"]).flatten()
        columns = [flat.column(f"labels.{label}").to_numpy() for label in task.label_names]
        labels = torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))
    people, identities = encode_identities(table.column("identity").to_pylist())
    return Faces(
        name=name,
        task=task,
        keys=table.column("key").to_pylist(),
        identities=identities,
        people=people,
        labels=labels,
        arrow_dataset=dataset.cast_column("image", datasets.Image(decode=False)),
        arrow_rows=np.arange(len(dataset)),
        cache=cache,
        exclusions=exclusions,
    )


def encode_identities(names: list[str]) -> tuple[list[str], np.ndarray]:
    """Return the sorted people, and the index of the person on each photo, int64 (N,)."""
    import numpy as np

    people = sorted(set(names))
    index = {name: i for i, name in enumerate(people)}
    return people, np.fromiter((index[name] for name in names), dtype=np.int64, count=len(names))
