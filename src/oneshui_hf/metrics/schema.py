"""The types of `metrics.json`, which may come from the Hub, from an earlier version, or from this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..errors import OneshuiError
from ..runs import METRICS, has_valid_checksum, read_object
from ..sets import EVALUATED
from ..validation import Count, Schema, Text, check_fields
from .further_schema import FurtherAttacks

Number = float | None  # None where it is unknown
Interval = Annotated[list[Number], Field(max_length=2)] | None  # a published one may lack an end
Ends = Annotated[list[float], Field(min_length=2, max_length=2)] | None


class SetMetrics(Schema):
    """The metrics of one set."""

    images: Count | None = None
    people: Count | None = None
    loss: Number = None
    map: Number = None
    accuracy: Number = None
    balanced_accuracy: Number = None
    labels_left_out: Count | None = None


class Intervals(Schema):
    """Confidence intervals, of each metric of each set and of comparisons."""

    retain: dict[Text, Interval] = Field(default_factory=dict)
    forget: dict[Text, Interval] = Field(default_factory=dict)
    val: dict[Text, Interval] = Field(default_factory=dict)
    test: dict[Text, Interval] = Field(default_factory=dict)
    tow: Interval = None
    gap_closure: Interval = None


class Attack(Schema):
    """The success of one attack."""

    auc: Number = None
    auc_either_way: Number = None
    balanced_accuracy: Number = None
    interval: Interval = None
    tpr: dict[Text, Number] | None = None


class Attacks(Schema):
    """The success of each attack, by name."""

    __pydantic_extra__: dict[str, Attack]

    strongest: Text | None = None


class Floor(Schema):
    """The metrics of oracles of other seeds."""

    retain: Number = None
    forget: Number = None
    val: Number = None
    test: Number = None
    tow: Number = None
    gap_closure: Number = None
    auc_either_way: Number = None


class Relearning(Schema):
    """The steps until the forget loss is restored."""

    steps: Count | None = None
    at_most: Count | None = None


class SetCollapse(Schema):
    """How far a set's score is below the original's, and how far it may be."""

    drop: Number = None
    limit: Number = None


class Collapse(Schema):
    """The collapse alarm."""

    retain: SetCollapse = Field(default_factory=SetCollapse)
    test: SetCollapse = Field(default_factory=SetCollapse)
    collapsed: bool | None = None


class Changes(Schema):
    """Statistics of the changes of people."""

    mean: Number = None
    sd: Number = None
    worst_tenth: Number = None
    largest: Number = None


class BystanderSet(Schema):
    """What changed for the people of one set."""

    people: Count | None = None
    loss_change: Changes | None = None
    beyond_spread: Number = None
    exposure_change: Changes | None = None


class BystanderSets(Schema):
    """What changed for the people of each set."""

    retain: BystanderSet | None = None
    test: BystanderSet | None = None


class BystanderGroup(Schema):
    """People with a label compared with people without it. A published one has no name."""

    name: Text | None = None
    label: Count
    people_with: Count
    people_without: Count
    difference: float
    interval: Ends = None
    oracle: Number = None
    differs: bool


class BystanderGroups(Schema):
    """The comparisons of each set, and how many had too few people."""

    retain: list[BystanderGroup] = Field(default_factory=list)
    test: list[BystanderGroup] = Field(default_factory=list)
    left_out: Count = 0


class Bystanders(BystanderSets):
    """What changed for people who are not forgotten."""

    oracle: BystanderSets | None = None
    groups: BystanderGroups = Field(default_factory=BystanderGroups)


class Separation(Schema):
    """How well a score separates the forget set from another set."""

    auc: Number
    interval: Ends = None


class Separations(Schema):
    """The same for retain and test."""

    retain: Separation
    test: Separation


class OwnerRanks(Schema):
    """The ranks of forgotten people among the candidates; `intervals` has those of the means, by name."""

    people: Count
    candidates: Count
    rank: Number
    rank_1_share: Number
    photo_rank: Number
    support_rank: Number = None
    batch_share: Number
    intervals: dict[Text, Ends]


class DifferenceScore(Schema):
    """The success of one score of a difference attack."""

    photos: Separations
    people: Separations
    owner: OwnerRanks


class WeightScore(DifferenceScore):
    """The success of the attack on weights."""

    layers: Count
    numbers_left_out: Count


class OutputScores(Schema):
    """The success of the attack on outputs."""

    loss_rise: DifferenceScore
    logit_distance: DifferenceScore


class ModelDifference(Schema):
    """The success of the difference attacks on a model and its original."""

    outputs: OutputScores
    weights: WeightScore | None = None


class Difference(ModelDifference):
    """The same, and that on the oracle."""

    oracle: ModelDifference | None = None


class PersonAttack(Schema):
    """The success of the range attack on people."""

    people: Count
    unseen_people: Count
    auc: Number
    interval: Ends = None
    auc_either_way: Number


class PersonLevel(PersonAttack):
    """The same, and that on the oracle."""

    oracle: PersonAttack | None = None


class Compared(Schema):
    """The hashes of the models that a model was compared with."""

    original: Text | None = None
    oracle: Text | None = None


class StoredMetrics(Schema):
    """Metrics that are published or shown, as far as they are known."""

    score: Literal["map", "accuracy"] | None = None
    format: int | None = None
    key: Text | None = None
    retain: SetMetrics = Field(default_factory=SetMetrics)
    forget: SetMetrics = Field(default_factory=SetMetrics)
    val: SetMetrics = Field(default_factory=SetMetrics)
    test: SetMetrics = Field(default_factory=SetMetrics)
    tow: Number = None
    gap_closure: Number = None
    noise_floor: Floor | None = None
    collapse: Collapse | None = None
    intervals: Intervals | None = None
    to_oracle: dict[Text, Any] | None = None
    attacks: Attacks | None = None
    person_level: PersonLevel | None = None
    difference: Difference | None = None
    bystanders: Bystanders | None = None
    probe: dict[Text, Any] | None = None
    relearning: Relearning | None = None
    further: FurtherAttacks | None = None
    limitations: list[Text] | None = Field(None, alias="cannot_tell")
    compared_with: Compared | None = None


class _MeasuredSet(SetMetrics):
    images: Count
    people: Count
    loss: Number
    balanced_accuracy: Number


class _MeasuredAttack(Schema):
    auc: Number
    auc_either_way: Number
    balanced_accuracy: Number
    interval: Ends
    tpr: dict[Text, Number]


class _MeasuredAttacks(Schema):
    __pydantic_extra__: dict[str, _MeasuredAttack]

    strongest: Text


class _SetIntervals(Schema):
    __pydantic_extra__: dict[str, Ends]

    loss: Ends


class _MeasuredIntervals(Schema):
    retain: _SetIntervals
    forget: _SetIntervals
    val: _SetIntervals
    test: _SetIntervals
    tow: Ends = None
    gap_closure: Ends = None


class _MeasuredFloor(Schema):
    retain: Number
    forget: Number
    test: Number
    tow: Number
    auc_either_way: Number
    gap_closure: Number = None


class _Distance(Schema):
    loss_gap: Number
    largest_loss_gap: Number
    jensen_shannon: Number


class _Distances(Schema):
    forget: _Distance


class _Probe(Schema):
    people: Annotated[int, Field(ge=1)]
    balanced_accuracy: float


class _MeasuredRelearning(Schema):
    steps: Count | None
    at_most: Count


class MeasuredMetrics(Schema):
    """All metrics that this version measures."""

    score: Literal["map", "accuracy"]
    retain: _MeasuredSet
    forget: _MeasuredSet
    val: _MeasuredSet
    test: _MeasuredSet
    tow: Number
    gap_closure: Number
    noise_floor: _MeasuredFloor | None
    collapse: Collapse | None
    intervals: _MeasuredIntervals
    to_oracle: _Distances | None
    attacks: _MeasuredAttacks
    person_level: PersonLevel | None
    difference: Difference | None
    bystanders: Bystanders | None
    probe: _Probe | None
    relearning: _MeasuredRelearning | None
    further: FurtherAttacks | None = None
    limitations: list[Text] = Field(alias="cannot_tell")

    @model_validator(mode="after")
    def _require_scores(self) -> MeasuredMetrics:
        for name in EVALUATED:
            values, intervals = getattr(self, name), getattr(self.intervals, name)
            if self.score not in values.model_fields_set or self.score not in (intervals.model_extra or {}):
                raise ValueError(f"has no {self.score} of {name}")
        return self


def read_metrics(folder: Path, schema: type[Schema] = StoredMetrics) -> dict[str, Any]:
    """Read the metrics of a run.

    Args:
        folder: The run.
        schema: What they must contain.

    Raises:
        OneshuiError: They are missing or damaged.
    """
    found = read_object(folder / METRICS)
    check_fields(schema, found, folder / METRICS)
    if "content" in found and not has_valid_checksum(found):  # earlier versions wrote none
        raise OneshuiError(f"{folder / METRICS} has changed since it was written; run `oneshui evaluate` again.")
    return found
