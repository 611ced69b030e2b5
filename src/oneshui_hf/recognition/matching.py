"""Open-set identification of one photo: templates of enrolled people, the acceptance threshold, and its error rates.

A face embedding is a vector of unit length that an encoder computes from a photo. This module does not depend on the encoder. A person's
template is the normalised mean of the embeddings of their photos. A photo is compared with all templates by cosine similarity.

A wrong match changes the model for the wrong person; a rejected photo only costs a second question. A photo is therefore accepted only if
its best similarity reaches a threshold that unseen identities rarely reach, and is ahead of the runner-up by a margin. Both are calibrated
on the validation set, whose identities are not enrolled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import OneshuiError, UsageError

TARGET_RATE = 0.01  # share of photos of unseen identities that may be accepted
CONFIDENCE = 0.95  # of an upper bound
_CHUNK = 1024  # photos compared at a time


def make_template(embeddings: torch.Tensor) -> torch.Tensor | None:
    """Return a person's template, float16 (d,), unit length: the normalised mean of their photos' embeddings.

    Args:
        embeddings: Of their photos, unit length (n, d). Rows with NaN (no face was found in the photo) are ignored.

    Returns:
        None if no row is left or if the rows cancel each other. The person cannot be identified by a photo then.
    """
    total = embeddings[has_embedding(embeddings)].double().sum(dim=0)
    length = total.norm()
    return (total / length).half().cpu() if length > 1e-6 else None


@dataclass(frozen=True)
class ErrorRate:
    """A share of people's photos, with an upper confidence bound.

    Attributes:
        value: The share. Each person has the same weight, however many photos they have.
        upper: Upper bound with 95 % confidence, over the choice of people.
        people: Number of people.
        photos: Number of photos.
    """

    value: float
    upper: float
    people: int
    photos: int

    def __str__(self) -> str:
        return f"{_percent(self.value)} (at most {_percent(self.upper)}, from {_count(self.people, 'person', 'people')})"


# The key of each field in an artefact.
_KEYS = {
    "threshold": "threshold",
    "margin_threshold": "margin",
    "enrolled": "enrolled",
    "target_rate": "wanted",
    "false_match_rate": "false_match",
    "misidentification_rate": "mistaken",
    "false_non_match_rate": "missed",
}


@dataclass(frozen=True)
class Calibration:
    """The acceptance thresholds, and the error rates at these thresholds.

    Attributes:
        threshold: Minimum cosine similarity with the best match.
        margin_threshold: Minimum runner-up margin, in cosine. If it is 0, the best match must still be ahead.
        enrolled: Number of enrolled people. The best similarity of an unseen identity grows with this number, so the rates hold for this
            number only; with f times as many people the false match rate is about f times as high.
        target_rate: The false match rate that was requested.
        false_match_rate: Share of photos of unseen identities that are accepted as an enrolled person.
        misidentification_rate: Share of photos of enrolled people that are accepted as another person; None without held-out photos.
        false_non_match_rate: Share of photos of enrolled people that are not accepted; None without held-out photos.
    """

    threshold: float
    margin_threshold: float
    enrolled: int
    target_rate: float
    false_match_rate: ErrorRate
    misidentification_rate: ErrorRate | None = None
    false_non_match_rate: ErrorRate | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        values = {key: getattr(self, name) for name, key in _KEYS.items()}
        return {key: asdict(value) if isinstance(value, ErrorRate) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Read the result of `to_dict`.

        Raises:
            OneshuiError: A key is missing or unknown, or a value has the wrong type.
        """
        try:
            if set(values) != set(_KEYS.values()):
                raise KeyError
            numbers = {name: float(values[_KEYS[name]]) for name in ("threshold", "margin_threshold", "target_rate")}
            rates = {name: _rate(values[_KEYS[name]]) for name in ("false_match_rate", "misidentification_rate", "false_non_match_rate")}
            if rates["false_match_rate"] is None:
                raise KeyError
            return cls(**numbers, enrolled=int(values["enrolled"]), **rates)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError):
            raise OneshuiError("The calibration of the face embeddings is damaged; prepare again.") from None

    def __str__(self) -> str:
        sentence = (
            f"A photo is matched from a similarity of {self.threshold:.3f} on, {self.margin_threshold:.3f} ahead of the runner-up. With "
            f"{_count(self.enrolled, 'person', 'people')} enrolled, a photo of an unseen identity is matched with an enrolled person in "
            f"{self.false_match_rate}."
        )
        if self.misidentification_rate is not None and self.false_non_match_rate is not None:
            sentence += (
                f" A new photo of an enrolled person is matched with another person in {self.misidentification_rate}, with no person in "
                f"{self.false_non_match_rate}."
            )
        return sentence


def calibrate(
    templates: Mapping[str, torch.Tensor],
    unseen: torch.Tensor,
    identities: torch.Tensor,
    *,
    held_out: Mapping[str, torch.Tensor] | None = None,
    target_rate: float = TARGET_RATE,
    margin_threshold: float | None = None,
) -> Calibration:
    """Return the lowest threshold at which the false match rate is at most `target_rate`.

    The false match rate is the mean over unseen identities of the share of their photos that are accepted: the probability that an unseen
    identity who submits a photo is taken for an enrolled person. Photos of one person are correlated, so its upper bound counts people,
    not photos (`upper_confidence_bound`). The threshold is chosen on the same identities, so the bound is computed from the target rate,
    not from the observed rate: a threshold whose true rate exceeds the bound would have accepted more than the target rate in this sample,
    except in one case of twenty. It holds for people and photos like these.

    Args:
        templates: Name to template (d,), of all enrolled people. Templates with NaN are ignored. The best similarity of an unseen identity
            grows with the number of templates, so the threshold holds for this number of people.
        unseen: Embeddings of photos of people who are not enrolled (n, d). Rows with NaN are ignored: such photos are always rejected.
        identities: The person of each row of `unseen`, integers (n,).
        held_out: Name to embeddings (m, d) of photos of enrolled people that are not part of their template. Names without a template are
            ignored.
        target_rate: The maximum false match rate.
        margin_threshold: The minimum runner-up margin. None: the median margin of photos of unseen identities, since a margin that half of
            them reach by chance carries no information.

    Raises:
        UsageError: No person is enrolled, there are no unseen identities, or a number is out of range.
        OneshuiError: The embeddings are not from one encoder.
    """
    if not 0 < target_rate < 1:
        raise UsageError(f"The false match rate must be between 0 and 1, not {target_rate}.")
    if margin_threshold is not None and not 0 <= margin_threshold < math.inf:
        raise UsageError(f"The margin over the runner-up must be at least 0, not {margin_threshold}.")
    names, gallery = _gallery(templates)
    if not names:
        raise UsageError("No person is enrolled, since no photo of the training people has a face embedding.")
    usable = has_embedding(unseen)
    if not usable.any():
        raise UsageError("No photo of the validation people has a face embedding, so no threshold can be found.")
    best, margin, _ = _compare(unseen[usable], gallery)
    owner = identities[usable.to(identities.device)].cpu().unique(return_inverse=True)[1]
    if margin_threshold is None:
        margin_threshold = margin.median().item() if len(names) > 1 else 0.0
    # From the similarity alone: the margin, chosen on the same photos, can only reject more of them.
    threshold = _threshold(best, owner, target_rate)
    shares = _share_per_person(_is_ahead(margin, margin_threshold) & (best >= threshold), owner)
    false_match_rate = ErrorRate(shares.mean().item(), upper_confidence_bound(target_rate, len(shares)), len(shares), len(best))
    enrolled_rates = _held_out_rates(names, gallery, held_out or {}, threshold, margin_threshold)
    return Calibration(threshold, margin_threshold, len(names), target_rate, false_match_rate, *enrolled_rates)


def has_embedding(embeddings: torch.Tensor) -> torch.Tensor:
    """Return whether each photo has an embedding (no NaN): bool (n,) for (n, d)."""
    return embeddings.isfinite().all(dim=-1)


def _gallery(templates: Mapping[str, torch.Tensor]) -> tuple[list[str], torch.Tensor]:
    """Return the sorted names of people with a template, and the templates, float64 (N, d), normalised again after rounding to float16."""
    names = [name for name in sorted(templates) if has_embedding(templates[name])]
    if len({templates[name].shape for name in names}) > 1:
        raise OneshuiError(
            "The templates of the enrolled people have different lengths, so they are from different encoders; prepare again."
        )
    if not names:
        return names, torch.zeros(0, 0, dtype=torch.float64)
    return names, F.normalize(torch.stack([templates[name].cpu().double() for name in names]), dim=1)


def _compare(embeddings: torch.Tensor, gallery: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return for each photo the best similarity, the runner-up margin (infinite without a runner-up), and the row of the best match."""
    if embeddings.shape[1] != gallery.shape[1]:
        raise OneshuiError(
            f"The embedding of a photo has {embeddings.shape[1]} numbers and the templates have {gallery.shape[1]}: they are from "
            "different encoders; use the encoder of the preparation."
        )
    found = []
    for part in embeddings.cpu().double().split(_CHUNK):
        # Rounded, since the last bits of a product depend on its number of rows, and the threshold lies just above one of these values.
        similarities = (F.normalize(part, dim=1) @ gallery.T).round(decimals=9)
        values, rows = similarities.topk(min(2, len(gallery)), dim=1)
        margin = values[:, 0] - values[:, 1] if len(gallery) > 1 else torch.full_like(values[:, 0], math.inf)
        found.append((values[:, 0], margin, rows[:, 0]))
    best, margin, row = (torch.cat(column) for column in zip(*found, strict=True))
    return best, margin, row


def _is_ahead(margin: torch.Tensor, margin_threshold: float) -> torch.Tensor:
    """Return whether the best match is far enough ahead; False for a tie."""
    return (margin >= margin_threshold) & (margin > 0)


def _threshold(scores: torch.Tensor, owner: torch.Tensor, rate: float) -> float:
    """Return the lowest threshold that at most a share `rate` of the scores reaches, with equal weight per person."""
    photos = owner.bincount()
    scores, order = scores.sort(descending=True, stable=True)
    weights = (1 / (photos.double() * len(photos)))[owner[order]]
    first_rejected = int((weights.cumsum(0) <= rate * (1 + 1e-9)).sum())
    return math.nextafter(scores[first_rejected].item(), math.inf)  # equal scores are rejected, too


def _share_per_person(accepted: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    photos = owner.bincount()
    return owner.bincount(weights=accepted.double(), minlength=len(photos)) / photos


def _held_out_rates(
    names: list[str], gallery: torch.Tensor, held_out: Mapping[str, torch.Tensor], threshold: float, margin_threshold: float
) -> tuple[ErrorRate | None, ErrorRate | None]:
    """Return the misidentification rate and the false non-match rate of enrolled people; None without held-out photos."""
    misidentified, rejected, photos = [], [], 0
    for number, name in enumerate(names):
        embeddings = held_out.get(name)
        if embeddings is None or not (usable := has_embedding(embeddings)).any():
            continue
        best, margin, row = _compare(embeddings[usable], gallery)
        accepted = (best >= threshold) & _is_ahead(margin, margin_threshold)
        misidentified.append((accepted & (row != number)).double().mean().item())
        rejected.append((~accepted).double().mean().item())
        photos += len(best)
    if not photos:
        return None, None
    people = len(rejected)
    means = [sum(shares) / people for shares in (misidentified, rejected)]
    first, second = (ErrorRate(mean, upper_confidence_bound(mean, people), people, photos) for mean in means)
    return first, second


def upper_confidence_bound(mean: float, people: int) -> float:
    """Return the upper 95 % confidence bound of the mean of independent numbers in [0, 1], one per person.

    By Bentkus ("On Hoeffding's inequalities", Annals of Probability 2004), the sum of n such numbers with mean u stays below x with
    probability at most e P(B <= x), where B is binomial (n, u) and the logarithm of P is interpolated linearly between whole x. The bound
    is the u at which this equals 0.05. No assumption is made on the distribution of the numbers.

    Args:
        mean: Their mean in this sample.
        people: How many they are. The bound is 1 for none.
    """
    from scipy.optimize import brentq
    from scipy.stats import binom

    total = mean * people
    if people < 1 or total >= people:
        return 1.0
    below = math.floor(total)
    fraction = total - below

    def excess(bound: float) -> float:
        lower, upper = binom.cdf([below, below + 1], people, bound)
        return float(lower ** (1 - fraction) * upper**fraction - (1 - CONFIDENCE) / math.e)

    return float(brentq(excess, mean, 1.0, xtol=1e-13))


@dataclass(frozen=True)
class Match:
    """The result of an identification. Its text contains no name.

    Attributes:
        person: The most similar person, accepted or not; None if no person is enrolled or the photo has no embedding.
        similarity: Cosine similarity with that person's template; NaN without a person.
        runner_up_margin: Its difference to the runner-up's similarity; infinite without a runner-up.
        accepted: Whether both thresholds are reached.
        threshold: The threshold of the similarity.
        margin_threshold: The threshold of the runner-up margin.
    """

    person: str | None = field(repr=False)  # a repr may be logged
    similarity: float
    runner_up_margin: float
    accepted: bool
    threshold: float
    margin_threshold: float

    def __str__(self) -> str:
        if math.isnan(self.similarity):
            return "The photo is not recognised: no face was found in it, or no person is enrolled."
        ahead = "no other person is enrolled"
        if self.runner_up_margin < math.inf:
            ahead = f"it is {self.runner_up_margin:.3f} ahead of the runner-up ({self.margin_threshold:.3f} needed)"
        verdict = "recognised" if self.accepted else "not recognised with enough certainty"
        return f"The photo is {verdict}: its best similarity is {self.similarity:.3f} ({self.threshold:.3f} needed), {ahead}."


def identify(embedding: torch.Tensor, templates: Mapping[str, torch.Tensor], calibration: Calibration) -> Match:
    """Find the person on a photo.

    Args:
        embedding: Of the photo (d,). An embedding with NaN matches no person.
        templates: Name to template (d,), of all enrolled people.
        calibration: The result of `calibrate` for these people.

    Raises:
        OneshuiError: The embeddings are not from one encoder.
    """
    names, gallery = _gallery(templates)
    thresholds = calibration.threshold, calibration.margin_threshold
    if not names or not has_embedding(embedding):
        return Match(None, math.nan, math.nan, False, *thresholds)
    best, margin, row = _compare(embedding[None], gallery)
    accepted = bool(best[0] >= calibration.threshold) and bool(_is_ahead(margin, calibration.margin_threshold)[0])
    return Match(names[int(row[0])], best.item(), margin.item(), accepted, *thresholds)


def _rate(values: Mapping[str, Any] | None) -> ErrorRate | None:
    if values is None:
        return None
    return ErrorRate(float(values["value"]), float(values["upper"]), int(values["people"]), int(values["photos"]))


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _percent(share: float) -> str:
    return f"{float(f'{100 * share:.2g}'):g} %"  # two significant digits; 100 % instead of 1e+02 %
