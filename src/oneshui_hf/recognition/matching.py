"""Whose photo this is: signatures of people, the threshold that a photo must reach, and how often that goes wrong.

A signature is a direction: a vector of unit length that some encoder makes of a photo. Nothing here knows the encoder. A person's
signature is the direction of the mean of their photos'; a photo is compared with all people enrolled, by the cosine of the angle.

To take a stranger, or another person enrolled, for somebody damages a bystander; to know nobody costs a second question. So a photo is
accepted where its best similarity reaches a threshold that strangers seldom reach, and is ahead of the runner-up. All is calibrated on
people who are not enrolled and may never be: the validation set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import OneshuiError, UsageError

RATE = 0.01  # of strangers' photos that may be accepted
LEVEL = 0.95  # how often an upper bound holds
_ROWS = 1024  # photos that are compared at a time


def enrol(signatures: torch.Tensor) -> torch.Tensor | None:
    """Return the signature of a person, float16 (d,), unit length: the direction of the mean of their photos'.

    Args:
        signatures: Of their photos, unit length (n, d). Rows with NaN (a photo in which no face was found) are left out.

    Returns:
        None where no row is left, or where they cancel each other; the person cannot be recognised then.
    """
    total = signatures[has_signature(signatures)].double().sum(dim=0)
    length = total.norm()
    return (total / length).half().cpu() if length > 1e-6 else None


@dataclass(frozen=True)
class Rate:
    """A share of people's photos, and how large it could be.

    Attributes:
        value: The share, each person counting the same however many photos they have.
        upper: Upper end: with other people the true share would lie above it in at most 5 % of the cases.
        people: How many people it rests on.
        photos: How many photos.
    """

    value: float
    upper: float
    people: int
    photos: int

    def __str__(self) -> str:
        return f"{_percent(self.value)} (at most {_percent(self.upper)}, from {_count(self.people, 'person', 'people')})"


@dataclass(frozen=True)
class Calibration:
    """What a photo must reach to be accepted, and what that lets through.

    Attributes:
        threshold: The least cosine similarity with the best match.
        margin: The least lead over the runner-up, in cosine. Where it is 0, the best must still be ahead.
        enrolled: How many people a photo is compared with. A stranger resembles the best of many, so the rates hold for this number;
            with f times as many people the false-match rate is about f times as high.
        wanted: The false-match rate that was asked for.
        false_match: Strangers' photos that are accepted as somebody.
        mistaken: Photos of people enrolled that are accepted as somebody else; None where none were held out.
        missed: Photos of people enrolled that are not accepted; None where none were held out.
    """

    threshold: float
    margin: float
    enrolled: int
    wanted: float
    false_match: Rate
    mistaken: Rate | None = None
    missed: Rate | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Read back what `to_dict` made.

        Raises:
            OneshuiError: It is something else.
        """
        try:
            if set(values) != {f.name for f in fields(cls)}:
                raise KeyError
            rates = {name: _rate(values[name]) for name in ("false_match", "mistaken", "missed")}
            if rates["false_match"] is None:
                raise KeyError
            numbers = {name: float(values[name]) for name in ("threshold", "margin", "wanted")}
            return cls(**numbers, enrolled=int(values["enrolled"]), **rates)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError):
            raise OneshuiError("The calibration of the signatures is damaged; prepare again.") from None

    def __str__(self) -> str:
        sentence = (
            f"A photo is matched from a similarity of {self.threshold:.3f} on, {self.margin:.3f} ahead of the runner-up. With "
            f"{_count(self.enrolled, 'person', 'people')} enrolled, a stranger's photo is matched with somebody in {self.false_match}."
        )
        if self.mistaken is not None and self.missed is not None:
            sentence += f" A new photo of somebody enrolled is matched with another in {self.mistaken}, with nobody in {self.missed}."
        return sentence


def calibrate(
    people: Mapping[str, torch.Tensor],
    strangers: torch.Tensor,
    identities: torch.Tensor,
    *,
    held_out: Mapping[str, torch.Tensor] | None = None,
    rate: float = RATE,
    margin: float | None = None,
) -> Calibration:
    """Return the lowest threshold at which strangers' photos are accepted at most at a given rate.

    The rate is the mean over strangers of the share of their photos that are accepted: the chance that a stranger who hands in a photo is
    taken for somebody. Photos of one person resemble each other, so its upper bound counts people, not photos (`upper_bound`). The
    threshold is chosen on these strangers, so the bound is made from the rate allowed, not from the rate found: a threshold whose true
    rate is above it would have let through more than was allowed, but for one time in twenty. It holds for people and photos like these.

    Args:
        people: Name to signature (d,), of all who are enrolled. Those with NaN in it are left out. The best of many resembles a stranger
            more than the best of few, so the threshold holds for this number of people.
        strangers: Signatures of photos of people who are not enrolled (n, d). Rows with NaN are left out: they are refused anyway.
        identities: The person of each of them, integers (n,).
        held_out: Name to signatures (m, d) of photos of people enrolled that were not enrolled with. Names that are not enrolled, as
            happens where no signature could be made, are left out.
        rate: The wanted false-match rate.
        margin: The least lead over the runner-up. None: the median lead among strangers' photos, since a lead that chance gives to half
            of them tells nothing.

    Raises:
        UsageError: Nobody is enrolled, there are no strangers, or a number cannot be.
        OneshuiError: The signatures are not of one encoder.
    """
    if not 0 < rate < 1:
        raise UsageError(f"The false-match rate lies between 0 and 1, not at {rate}.")
    if margin is not None and not 0 <= margin < math.inf:
        raise UsageError(f"The lead over the runner-up is at least 0, not {margin}.")
    names, gallery = _gallery(people)
    if not names:
        raise UsageError("Nobody is enrolled, since no photo of the training people has a signature.")
    usable = has_signature(strangers)
    if not usable.any():
        raise UsageError("No photo of the validation people has a signature, so no threshold can be found.")
    best, lead, _ = _compare(strangers[usable], gallery)
    owner = identities[usable.to(identities.device)].cpu().unique(return_inverse=True)[1]
    if margin is None:
        margin = lead.median().item() if len(names) > 1 else 0.0
    threshold = _threshold(best, owner, rate)  # by similarity alone: the lead, chosen on the same photos, can only refuse more of them
    shares = _share_a_person(_is_ahead(lead, margin) & (best >= threshold), owner)
    false_match = Rate(shares.mean().item(), upper_bound(rate, len(shares)), len(shares), len(best))
    mistaken, missed = _held_out_rates(names, gallery, held_out or {}, threshold, margin)
    return Calibration(threshold, margin, len(names), rate, false_match, mistaken, missed)


def has_signature(signatures: torch.Tensor) -> torch.Tensor:
    """Return whether a signature could be made of each photo: bool (n,) for (n, d)."""
    return signatures.isfinite().all(dim=-1)


def _gallery(people: Mapping[str, torch.Tensor]) -> tuple[list[str], torch.Tensor]:
    """Return the names of those who have a signature, in order, and the signatures, float64 (N, d), unit length again after rounding."""
    names = [name for name in sorted(people) if has_signature(people[name])]
    if len({people[name].shape for name in names}) > 1:
        raise OneshuiError("The people's signatures are of different lengths, so of different encoders; prepare again.")
    if not names:
        return names, torch.zeros(0, 0, dtype=torch.float64)
    return names, F.normalize(torch.stack([people[name].cpu().double() for name in names]), dim=1)


def _compare(signatures: torch.Tensor, gallery: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return for each photo the best similarity, its lead over the runner-up (infinite where there is none), and whose it is."""
    if signatures.shape[1] != gallery.shape[1]:
        raise OneshuiError(
            f"A photo's signature has {signatures.shape[1]} numbers and those of the people have {gallery.shape[1]}: they are of "
            "different encoders; take the one that was prepared with."
        )
    found = []
    for part in signatures.cpu().double().split(_ROWS):
        # Rounded, since a product of many rows may differ from that of one in its last bits, and a threshold lies just above a stranger.
        similarities = (F.normalize(part, dim=1) @ gallery.T).round(decimals=9)
        values, places = similarities.topk(min(2, len(gallery)), dim=1)
        lead = values[:, 0] - values[:, 1] if len(gallery) > 1 else torch.full_like(values[:, 0], math.inf)
        found.append((values[:, 0], lead, places[:, 0]))
    best, lead, who = (torch.cat(column) for column in zip(*found, strict=True))
    return best, lead, who


def _is_ahead(lead: torch.Tensor, margin: float) -> torch.Tensor:
    """Whether the best match is far enough ahead; of two who tie neither is."""
    return (lead >= margin) & (lead > 0)


def _threshold(scores: torch.Tensor, owner: torch.Tensor, rate: float) -> float:
    """Return the lowest number that scores exceed or equal in at most `rate` of the cases, each person counting the same."""
    photos = owner.bincount()
    scores, order = scores.sort(descending=True, stable=True)
    weights = (1 / (photos.double() * len(photos)))[owner[order]]
    first_refused = int((weights.cumsum(0) <= rate * (1 + 1e-9)).sum())
    return math.nextafter(scores[first_refused].item(), math.inf)  # those who tie with it are refused, too


def _share_a_person(accepted: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    photos = owner.bincount()
    return owner.bincount(weights=accepted.double(), minlength=len(photos)) / photos


def _held_out_rates(
    names: list[str], gallery: torch.Tensor, held_out: Mapping[str, torch.Tensor], threshold: float, margin: float
) -> tuple[Rate | None, Rate | None]:
    """Return how often photos of people enrolled are accepted as somebody else, and how often they are not accepted."""
    mistaken, missed, photos = [], [], 0
    for place, name in enumerate(names):
        signatures = held_out.get(name)
        if signatures is None or not (usable := has_signature(signatures)).any():
            continue
        best, lead, who = _compare(signatures[usable], gallery)
        accepted = (best >= threshold) & _is_ahead(lead, margin)
        mistaken.append((accepted & (who != place)).double().mean().item())
        missed.append((~accepted).double().mean().item())
        photos += len(best)
    if not photos:
        return None, None
    people = len(missed)
    means = [sum(shares) / people for shares in (mistaken, missed)]
    first, second = (Rate(mean, upper_bound(mean, people), people, photos) for mean in means)
    return first, second


def upper_bound(share: float, people: int, level: float = LEVEL) -> float:
    """Return an upper bound of the mean of independent numbers between 0 and 1, one a person, whose mean in this sample is `share`.

    By Bentkus (2004), the sum of n such numbers with mean u stays below x with a probability of at most e P(B <= x), where B is binomial
    (n, u) and P is interpolated linearly in its logarithm between whole x. The bound is the u at which that is 1 - level; no
    assumption is made of how the numbers are distributed. For nobody it is 1.
    """
    allowed, low, high = math.log(1 - level) - 1, share, 1.0
    total = share * people
    if people < 1 or total >= people:
        return 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _log_tail(total, people, middle) > allowed else (low, middle)
    return high


def _log_tail(total: float, people: int, mean: float) -> float:
    """Return log P(B <= total) of a binomial, interpolated between whole numbers; `total` is less than `people`."""
    if mean == 1:
        return -math.inf
    below = math.floor(total)
    choices = [math.lgamma(people + 1) - math.lgamma(k + 1) - math.lgamma(people - k + 1) for k in range(below + 2)]
    terms = [log + k * math.log(mean) + (people - k) * math.log1p(-mean) for k, log in enumerate(choices)]
    lower, upper = _log_sum(terms[:-1]), min(0.0, _log_sum(terms))
    return lower + (total - below) * (upper - lower)


def _log_sum(logarithms: list[float]) -> float:
    largest = max(logarithms)
    return largest + math.log(sum(math.exp(log - largest) for log in logarithms))


@dataclass(frozen=True)
class Match:
    """Whom a photo shows, as far as can be told. In words it names nobody.

    Attributes:
        person: Whom it resembles most, accepted or not; None where there is nobody to compare with, or nothing to compare.
        similarity: The cosine with that person's signature; NaN where there is none.
        lead: By how much it is ahead of the runner-up; infinite where there is none.
        accepted: Whether it may be acted upon.
        threshold: What the similarity had to reach.
        margin: What the lead had to reach.
    """

    person: str | None = field(repr=False)  # a repr ends in logs
    similarity: float
    lead: float
    accepted: bool
    threshold: float
    margin: float

    def __str__(self) -> str:
        if math.isnan(self.similarity):
            return "The photo is not recognised: no face was found in it, or nobody is enrolled."
        ahead = "nobody else is enrolled"
        if self.lead < math.inf:
            ahead = f"it is {self.lead:.3f} ahead of the runner-up ({self.margin:.3f} needed)"
        verdict = "recognised" if self.accepted else "not recognised with enough certainty"
        return f"The photo is {verdict}: its best similarity is {self.similarity:.3f} ({self.threshold:.3f} needed), {ahead}."


def recognise(signature: torch.Tensor, people: Mapping[str, torch.Tensor], calibration: Calibration) -> Match:
    """Find whom a photo shows.

    Args:
        signature: Of the photo (d,). With NaN in it, it is nobody's.
        people: Name to signature (d,), of all who are enrolled.
        calibration: What `calibrate` found for these people.

    Raises:
        OneshuiError: The signatures are not of one encoder.
    """
    names, gallery = _gallery(people)
    asked = calibration.threshold, calibration.margin
    if not names or not has_signature(signature):
        return Match(None, math.nan, math.nan, False, *asked)
    best, lead, who = _compare(signature[None], gallery)
    accepted = bool(best[0] >= calibration.threshold) and bool(_is_ahead(lead, calibration.margin)[0])
    return Match(names[int(who[0])], best.item(), lead.item(), accepted, *asked)


def _rate(values: Mapping[str, Any] | None) -> Rate | None:
    if values is None:
        return None
    return Rate(float(values["value"]), float(values["upper"]), int(values["people"]), int(values["photos"]))


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _percent(share: float) -> str:
    return f"{float(f'{100 * share:.2g}'):g} %"  # two digits, and a whole is 100 %, not 1e+02 %
