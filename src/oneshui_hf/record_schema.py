"""The types of a record's fields. All are checked when a run is opened, so that all code that reads a record can rely on them.

A published record lacks what is not public, so a field that is present may be null where its value is text or a number.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .validation import Count, Schema, Text

Scalar = bool | int | float | Text | None


class Epoch(Schema):
    """A row of the history of a training. Its other fields are scores on val."""

    __pydantic_extra__: dict[str, float]

    epoch: Count
    train_loss: float


class Shard(Schema):
    """A row of the report of a sharded training."""

    shard: Count


class SplitSizes(Schema):
    """The sizes of a run's sets."""

    forget_identities: Count | None = None
    images: dict[Text, Count] = Field(default_factory=dict)


class PhotoRange(Schema):
    """What photos of unseen identities look like; see `stages.photo_range`."""

    distance: float
    mean: Annotated[list[float], Field(min_length=9, max_length=9)]
    whitening: Annotated[list[float], Field(min_length=45, max_length=45)]


class Report(Schema):
    """What a training or a request reports."""

    method: Text | None = None
    method_options: dict[Text, Scalar | list[Scalar]] = Field(default_factory=dict)
    method_from: Text | None = None
    reads: list[Text] = Field(default_factory=list)
    photos: Count | None = None
    people: Count | None = None
    labels: Text | None = None
    source: Text | None = None
    seconds: float | None = None
    destroyed: Count | None = None
    split: SplitSizes | None = None
    history: list[Epoch] = Field(default_factory=list)
    best_epoch: Count | None = None
    epochs: Count | None = None
    shards: list[Shard] | Count = Field(default_factory=list)  # of an unlearned model: how many it has left
    shards_trained: Count = 0
    rows: Count | None = None  # of a head in closed form
    features: Count | None = None
    photo_range: PhotoRange | None = None

    @model_validator(mode="after")
    def _require_kept_epoch(self) -> Report:
        if self.history and (self.best_epoch or 1) > len(self.history):
            raise ValueError("names a best epoch that its history lacks")
        return self

    @model_validator(mode="after")
    def _require_list_of_shards(self) -> Report:
        if isinstance(self.shards, int) and self.method is None:  # a training lists its shards
            raise ValueError("has a number as its shards, not a list")
        return self


class DatasetDescription(Schema):
    """The data of a run."""

    name: Text | None = None
    fingerprint: Text | None = None
    task: Literal["multi_label", "single_label"] | None = None
    labels: list[Text] | None = None
    images: Count | None = None
    identities: Count | None = None
    labels_name_people: bool | None = None


class Parent(Schema):
    """The run that a run was computed from."""

    run: Text | None = None
    weights: Text | None = None


class Publication(Schema):
    """A repository that contains the weights of a run."""

    repo_id: Text
    public: bool


class RecordFields(Schema):
    """The record of a run."""

    kind: Literal["original", "oracle", "unlearned"]
    seed: int
    options: dict[Text, Scalar | list[Scalar]]
    dataset: DatasetDescription
    state: Literal["training", "complete"] = "complete"
    parent: Parent | None = None
    weights: Text | None = None
    settings: dict[Text, Text] = Field(default_factory=dict)
    split: Text | None = None
    report: Report = Field(default_factory=Report)
    versions: dict[Text, Any] = Field(default_factory=dict)
    publications: list[Publication] = Field(default_factory=list)
