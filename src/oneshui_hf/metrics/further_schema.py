"""The types of the entry `further` of `metrics.json`, which the attacks of `--attacks all` write."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..validation import Count, Schema, Text

Number = float | None  # None where it is unknown
Ends = Annotated[list[Number], Field(min_length=2, max_length=2)] | None


class Recovery(Schema):
    """Loss and score of a person's other photos, before and after training on one photo."""

    lr: float
    steps: Count
    loss_before: Number = None
    loss_after: Number = None
    score_before: Number = None
    score_after: Number = None
    recovery: Number = None
    interval: Ends = None


class Excess(Schema):
    """How much further the loss falls than the oracle's."""

    value: Number = None
    interval: Ends = None


class FewShotRelearning(Schema):
    """Few-shot relearning."""

    people: Count
    unlearned: Recovery
    oracle: Recovery | None = None
    excess: Excess | None = None


class RoundedAttack(Schema):
    """An attack on rounded weights."""

    auc: Number = None
    auc_either_way: Number = None
    interval: Ends = None


class RoundedModel(Schema):
    """The scores of one model with rounded weights."""

    retain: Number = None
    forget: Number = None
    test: Number = None
    forget_loss: Number = None
    attacks: dict[Text, RoundedAttack] = Field(default_factory=dict)


class Rounded(Schema):
    """The models at one precision."""

    unlearned: RoundedModel
    original: RoundedModel | None = None
    oracle: RoundedModel | None = None
    gap_closure: Number = None
    gap_closure_interval: Ends = None
    update_kept: Number = None


class Quantization(Schema):
    """The models at each precision."""

    float32: Rounded
    bf16: Rounded
    int8: Rounded
    int4: Rounded


class Inversion(Schema):
    """The resemblance of a reconstruction to people."""

    rank: float
    candidates: Count
    cosine: Number = None
    correlation: Number = None
    correlation_of_others: Number = None
    psnr: Number = None
    psnr_of_others: Number = None


class Similarity(Schema):
    """The similarity of features to the oracle's, by layer."""

    cka: list[Number]
    neighbours: list[Number]


class Similarities(Schema):
    """The similarity of each model's features to the oracle's."""

    unlearned: Similarity
    original: Similarity | None = None


class Representation(Schema):
    """The similarity of features on each set."""

    k: Count
    forget: Similarities
    test: Similarities


class FurtherAttacks(Schema):
    """The numbers of each attack, None for one that was not run, and the reasons of those."""

    few_shot_relearning: FewShotRelearning | None = None
    quantization: Quantization | None = None
    inversion: Inversion | None = None
    representation: Representation | None = None
    not_run: dict[Text, Text] = Field(default_factory=dict)
