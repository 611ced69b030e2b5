"""The one schema of all data sets, and the index of a data set that the rest of the code works with.

Rows are {key, image, identity, labels}: `key` names the photo within its data set (its file name), `identity` the person, `labels` is a
struct of 0/1 per attribute (multi-label) or one class (single-label).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import torch

TaskKind = Literal["multi_label", "single_label"]


@dataclass(frozen=True)
class Task:
    """What the model predicts."""

    kind: TaskKind
    label_names: tuple[str, ...]

    @property
    def score_name(self) -> str:
        """The metric of this task: "map" or "accuracy"."""
        return "map" if self.kind == "multi_label" else "accuracy"

    @property
    def problem_type(self) -> str:
        """The task as transformers names it in a model's config."""
        return f"{self.kind}_classification"


@dataclass(frozen=True)
class Faces:
    """A data set in memory, but for its pixels.

    Attributes:
        name: The builder's name, or the folder's.
        task: What is predicted.
        keys: Photo names, N.
        identities: Index into `people`, int64 (N,).
        people: Identity keys, sorted.
        labels: float32 (N, K) of 0/1, or int64 (N,).
        rows: The Arrow data set; its image column is not decoded.
        cache: The folder beside the Arrow data, for what is derived from it.
        notes: What reading it left out, for the user.
    """

    name: str
    task: Task
    keys: list[str]
    identities: np.ndarray
    people: list[str]
    labels: torch.Tensor
    rows: datasets.Dataset
    cache: Path
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def fingerprint(self) -> str:
        """A hash of photo names, people and labels, the same on every machine and for every order of rows."""
        stored = "int8" if self.task.kind == "multi_label" else "<i8"  # 0 and 1, or the numbers of classes, which may be many
        labels = self.labels.reshape(len(self), -1).numpy().astype(stored)
        digest = hashlib.sha256("\n".join(self.task.label_names).encode())
        for row in sorted(range(len(self)), key=self.keys.__getitem__):
            digest.update(f"{self.keys[row]}\0{self.people[self.identities[row]]}\0".encode())
            digest.update(labels[row].tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a run's record says of its data."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "task": self.task.kind,
            "labels": list(self.task.label_names),
            "images": len(self),
            "identities": len(self.people),
        }


def features(task: Task) -> datasets.Features:
    """Return the Arrow schema for a task."""
    from datasets import ClassLabel, Features, Image, Value

    labels: Any = ClassLabel(names=list(task.label_names))
    if task.kind == "multi_label":
        labels = {name: Value("int8") for name in task.label_names}
    return Features({"key": Value("string"), "image": Image(), "identity": Value("string"), "labels": labels})


def index(dataset: datasets.Dataset, name: str, cache: Path, notes: tuple[str, ...] = ()) -> Faces:
    """Read identities and labels of a data set in the schema into memory."""
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
    people, identities = np.unique(np.array(table.column("identity").to_pylist(), dtype=str), return_inverse=True)
    return Faces(
        name=name,
        task=task,
        keys=table.column("key").to_pylist(),
        identities=identities.astype(np.int64),
        people=people.tolist(),
        labels=labels,
        rows=dataset.cast_column("image", datasets.Image(decode=False)),
        cache=cache,
        notes=notes,
    )
