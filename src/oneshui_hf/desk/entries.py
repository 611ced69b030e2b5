"""The schema of each kind of ledger entry, with bounds on all sizes. Other fields are refused: they could carry personal data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field

from ..errors import OneshuiError, UsageError
from ..option_values import shown
from ..record_schema import Scalar
from ..validation import Count, Schema, Text, check_fields

FORMAT = 1
MOMENT = "%Y-%m-%dT%H:%M:%SZ"
MAX_SENTENCE, MAX_SENTENCES, MAX_BATCH = 500, 20, 1000
LIKE_UNSEEN = "like an unseen identity"
CLOCK_WENT_BACK, LINE_WAS_CUT, LINE_WAS_COMPLETED = "the clock went back", "a torn line was cut", "a torn line was completed"


def parse_moment(text: str) -> datetime:
    """Return the UTC time of an entry.

    Raises:
        ValueError: It is no such time.
    """
    return datetime.strptime(text, MOMENT).replace(tzinfo=UTC)


def write_moment(moment: datetime) -> str:
    """Return a time as entries contain it.

    Raises:
        UsageError: It has no time zone.
    """
    if moment.tzinfo is None:
        raise UsageError("The time `now` has no time zone; give one, for example datetime.now(UTC).")
    return moment.astimezone(UTC).strftime(MOMENT)


def _require_moment(text: str) -> str:
    if write_moment(parse_moment(text)) != text:  # strptime accepts fewer digits
        raise ValueError("is no UTC time of the form 2026-11-03T09:30:00Z")
    return text


def _require_day(text: str) -> str:
    if date.fromisoformat(text).isoformat() != text:
        raise ValueError("is no date of the form 2026-11-03")
    return text


Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Id = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Signature = Annotated[str, Field(pattern="^[0-9a-f]{128}$")]
RequestId = Annotated[str, Field(pattern="^R-[0-9]{6}$")]
Moment = Annotated[str, AfterValidator(_require_moment)]
Day = Annotated[str, AfterValidator(_require_day)]
Sentence = Annotated[str, Field(min_length=1, max_length=MAX_SENTENCE)]
Sentences = Annotated[list[Sentence], Field(max_length=MAX_SENTENCES)]
Options = Annotated[dict[Text, Scalar | list[Scalar]], Field(max_length=200)]
Ends = Annotated[list[float], Field(min_length=2, max_length=2)]


class Exact(Schema):
    """An object with exactly these fields."""

    model_config = ConfigDict(extra="forbid")


class EntryFields(Exact):
    """A line of the ledger."""

    number: Annotated[int, Field(ge=1)]
    time: Moment
    kind: str
    request: RequestId | None
    content: dict[str, Any]
    notes: Annotated[list[Literal["the clock went back", "a torn line was cut", "a torn line was completed"]], Field(max_length=2)]
    versions: Annotated[dict[Text, Text], Field(max_length=20)]
    previous: Hash
    signature: Signature


class Opened(Exact):
    """The desk was opened. The first entry, and no other."""

    format: Literal[1]
    desk: Id
    public_key: Hash


class Received(Exact):
    """A request came in. `photo` and `identity` are keyed commitments, see `commitments`."""

    secret: Id
    photo: Hash
    identity: Hash | None
    received: Day
    due: Day
    channel: Sentence | None


class Match(Exact):
    """How sure the recognition of a photo is: cosine similarities, and the error rates of the calibration at its threshold."""

    similarity: float | None
    lead: float | None
    threshold: float
    margin: float
    accepted: bool
    enrolled: Count
    false_match_rate: float
    false_match_rate_upper: float
    false_non_match_rate: float | None


class Identified(Exact):
    """The person is known to the model, or an operator states who it is."""

    found_by: Literal["name", "photo", "operator", "photo alone"]
    identity: Hash | None
    weights: Hash | None
    match: Match | None
    basis: Sentence


class Unidentified(Exact):
    """Nothing was found that the model was trained on this person; the request stays open."""

    weights: Hash | None
    match: Match | None
    basis: Sentence


class Extended(Exact):
    """The due date was moved."""

    due: Day
    reason: Sentence


class Refused(Exact):
    """The request was refused."""

    reason: Sentence


class Nothing(Exact):
    """An entry without content."""


class Estimate(Exact):
    """What it costs the others that `people` are forgotten, `people_before` of them before this batch, by simulated requests.

    `retain` and `val` are points of score that are lost; up to `simulated` people were simulated; `budget` bounds the larger loss.
    """

    people: Annotated[int, Field(ge=1)]
    people_before: Count
    retain: float
    val: float
    simulated: Annotated[int, Field(ge=1)]
    budget: Annotated[float, Field(ge=0)]


def estimated_points(estimate: Mapping[str, Any]) -> float:
    """Return the larger of the estimated losses of score, which the budget bounds."""
    return max(estimate["retain"], estimate["val"], 0.0)


def estimated_people(estimate: Mapping[str, Any]) -> str:
    """Return how many people are forgotten in the model that was estimated, as words."""
    people, earlier = estimate["people"], estimate["people_before"]
    return f"{people} {'person' if people == 1 else 'people'}" + (f" ({earlier} of them before this batch)" if earlier else "")


class Batch(Exact):
    """Requests are about to be applied together. Written before the work, so that a killed one can be completed."""

    batch: Annotated[int, Field(ge=1)]
    requests: Annotated[list[RequestId], Field(min_length=1, max_length=MAX_BATCH)]
    method: Text
    seed: int
    weights_before: Hash
    estimate: Estimate | None = None


class Applied(Exact):
    """The model was changed. `destroyed` is the number of people of the batch whose prepared data was destroyed.

    `val_loss` are the points of score that val has lost since the preparation, as measured, next to `estimate`, which was made before.
    """

    batch: Annotated[int, Field(ge=1)]
    people_in_batch: Annotated[int, Field(ge=1, le=MAX_BATCH)]
    method: Text
    method_from: Text | None
    method_options: Options
    seed: int
    weights_before: Hash
    weights_after: Hash
    files: Annotated[dict[Text, Hash], Field(max_length=1000)]
    destroyed: Count
    seconds: float | None
    estimate: Estimate | None = None
    val_loss: float | None = None
    not_done: Sentences
    not_measured: Sentences


class AppliedWithReceipt(Applied):
    """The entry of the ledger, which has the SHA-256 of the receipt as well."""

    receipt: Hash


class Verified(Exact):
    """The new model was hashed and loaded from the disk, and its loss on the photo was compared.

    `unseen` are the 5 % and 95 % quantiles of the loss of unseen identities' photos under the original model; `unlike_photos` is whether
    the photo is unlike all of their photos, such as one that shows no face.
    """

    weights: Hash
    labels: Literal["given", "predicted"]
    loss_before: float | None
    loss_after: float | None
    unseen: Ends | None
    verdict: Literal["like an unseen identity", "not yet", "too much", "unknown"]
    unlike_photos: bool | None = None


def shows_no_change(verified: Mapping[str, Any]) -> bool:
    """Whether the loss of the photo is in the range of unseen identities, and was before the change as well."""
    ends, before = verified["unseen"], verified["loss_before"]
    return verified["verdict"] == LIKE_UNSEEN and before is not None and ends[0] <= before <= ends[1]


class Rechecked(Exact):
    """A later model was examined: the loss of the photo under it, and whether the person is still forgotten.

    `returned` is the share of the change of the loss in the receipt that is undone; `shown_by` are the findings that show a relapse.
    """

    weights: Hash
    photo: Literal["kept", "given again"]
    labels: Literal["those of the receipt", "predicted"]
    loss: float | None
    loss_before: float | None
    loss_after: float | None
    returned: float | None
    unseen: Ends | None
    verdict: Literal["like an unseen identity", "no longer", "not yet", "too much", "unknown"]
    shown_by: Annotated[list[Literal["weights", "split", "range", "receipt"]], Field(max_length=4)]
    not_measured: Sentences


class Served(Exact):
    """The new model is in service, as an operator states. `scores` are percent with the ends of a 95 % interval, where it was evaluated."""

    weights: Hash
    score: Literal["map", "accuracy"] | None
    scores: Annotated[dict[Literal["retain", "val", "test"], float], Field(max_length=3)]
    intervals: Annotated[dict[Literal["retain", "val", "test"], Ends], Field(max_length=3)]


class Answered(Exact):
    """The person was answered, by a letter with this SHA-256."""

    letter: Hash


CONTENTS: dict[str, type[Exact]] = {
    "opened": Opened,
    "received": Received,
    "identified": Identified,
    "unidentified": Unidentified,
    "extended": Extended,
    "refused": Refused,
    "withdrawn": Nothing,
    "batch": Batch,
    "applied": AppliedWithReceipt,
    "verified": Verified,
    "rechecked": Rechecked,
    "served": Served,
    "answered": Answered,
    "erased": Nothing,
}
OF_THE_DESK = ("opened", "batch")  # kinds without a request


class ReceiptFields(Exact):
    """A receipt: the contents of a request's entries, with the key that signs."""

    format: Literal[1]
    desk: Id
    public_key: Hash
    request: RequestId
    time: Moment
    received: Day
    due: Day
    identified: Identified
    applied: Applied
    verified: Verified
    versions: Annotated[dict[Text, Text], Field(max_length=20)]
    previous: Hash
    signature: Signature


@dataclass(frozen=True)
class Draft:
    """What an entry will contain."""

    kind: str
    request: str | None
    content: Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """An entry of the ledger.

    Attributes:
        number: Its line, from 1 on.
        time: When it was written, by the clock of the machine.
        kind: One of `CONTENTS`.
        request: The request, if it concerns one.
        content: Fields by kind.
        hash: The SHA-256 of its line.
    """

    number: int
    time: datetime
    kind: str
    request: str | None
    content: Mapping[str, Any]
    hash: str


def check_entry(value: Any, place: str) -> None:
    """Check the fields of an entry.

    Raises:
        OneshuiError: A field is missing, unknown, or out of bounds; the message starts with `place`.
    """
    check_fields(EntryFields, value, Path(place))
    kind = value["kind"]
    if kind not in CONTENTS:
        raise OneshuiError(f"{place} is damaged: '{shown(kind)}' is no kind of entry.")
    if (value["request"] is None) != (kind in OF_THE_DESK):
        raise OneshuiError(f"{place} is damaged: an entry '{kind}' {'lacks' if value['request'] is None else 'has'} a request.")
    check_fields(CONTENTS[kind], value["content"], Path(place), "content")
