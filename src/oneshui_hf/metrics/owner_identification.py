"""Owner identification: at which rank among candidates does an attacker's score put each forgotten person?

An attacker suspects that one of N people was forgotten, holds photos of all of them, and orders the people by a score of their photos.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.stats import beta

from ..errors import UsageError
from .attack_scores import Groups
from .intervals import Interval, bootstrap


@dataclass(frozen=True)
class OwnerIdentification:
    """Ranks of forgotten people; 1 is found at once, (candidates + 1) / 2 is chance.

    The candidates of a forgotten person are that person and all people who were not forgotten. Intervals are over the forgotten people.

    Attributes:
        candidates: Their number N.
        people: Number of forgotten people, k.
        rank: Mean rank by the mean score of a person's photos.
        rank_1_share: Share of the forgotten people with rank 1. Chance is 1 / N.
        photo_rank: Mean expected rank where the attacker has one random photo of each candidate.
        support_rank: The same, where the photo of the forgotten person is the support photo; None without support photos.
        batch_share: Of the k people with the highest scores among all N - 1 + k candidates, the share that was forgotten.
            Chance is k / (N - 1 + k).
    """

    candidates: int
    people: int
    rank: Interval
    rank_1_share: Interval
    photo_rank: Interval
    support_rank: Interval | None
    batch_share: float


def identify_owners(
    scores: torch.Tensor,
    identities: torch.Tensor,
    forgotten: torch.Tensor,
    generator: torch.Generator,
    support: Groups | None = None,
    repetitions: int = 1000,
    level: float = 0.95,
) -> OwnerIdentification:
    """Return how well scores of photos identify the forgotten people.

    Ties count half in ranks; where several people share the first rank, each is counted with the probability of being drawn first.

    Args:
        scores: Of all candidates' photos, (n,); higher for "more likely forgotten".
        identities: The person on each photo, integers (n,).
        forgotten: The numbers of the forgotten people, (k,).
        generator: Draws the people of the bootstrap.
        support: Scores of one photo of each forgotten person that no model was trained on, and the person on it, both (k,).
        repetitions: How many resamples of the forgotten people.
        level: Nominal coverage of the intervals.

    Raises:
        UsageError: No photo is of a forgotten person, or the shapes do not match.
    """
    if scores.shape != identities.shape or (support and support[0].shape != support[1].shape):
        raise UsageError("Owner identification needs the person on each scored photo.")
    is_forgotten = torch.isin(identities, forgotten)
    if not is_forgotten.any():
        raise UsageError("Owner identification needs photos of a forgotten person.")
    own, others = (scores[side].double() for side in (is_forgotten, ~is_forgotten))
    own_people, other_people = identities[is_forgotten], identities[~is_forgotten]
    by_person, by_other = person_means(own, own_people), person_means(others, other_people)
    people, candidates = len(by_person), len(by_other) + 1

    def mean(ranks: torch.Tensor) -> Interval:
        found = bootstrap(ranks, torch.arange(len(ranks)), repetitions, generator, level)
        low, high = (min(max(end, 1.0), float(candidates)) if not math.isnan(end) else end for end in (found.low, found.high))
        return Interval(found.value, low, high, level, found.units)

    return OwnerIdentification(
        candidates=candidates,
        people=people,
        rank=mean(person_ranks(by_person, by_other)),
        rank_1_share=share_interval(_first_places(by_person, by_other), level),
        photo_rank=mean(person_means(expected_ranks(own, others, other_people), own_people)),
        support_rank=mean(person_means(expected_ranks(support[0], others, other_people), support[1])) if support else None,
        batch_share=batch_share(by_person, by_other),
    )


def person_means(values: torch.Tensor, identities: torch.Tensor) -> torch.Tensor:
    """Return the mean over each person's photos, float64 (people,), in ascending order of the people's numbers.

    Args:
        values: Of photos, (n,).
        identities: The person on each photo, integers (n,).
    """
    people, index, sizes = identities.unique(return_inverse=True, return_counts=True)
    return torch.zeros(len(people), dtype=torch.float64).index_add_(0, index, values.double()) / sizes


def person_ranks(people: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the rank of each person (p,) among that person and all others (q,): 1 plus the others above, ties half; float64."""
    return 1 + _weight_above(people.double(), others.double(), torch.ones(len(others), dtype=torch.float64))


def expected_ranks(photos: torch.Tensor, others: torch.Tensor, other_people: torch.Tensor) -> torch.Tensor:
    """Return the expected rank of each photo (p,) among one random photo of each other person, in closed form, float64.

    It is 1 plus the sum over the other people of the share of their photos that score above the photo, ties half.

    Args:
        photos: Scores of photos of forgotten people.
        others: Scores of photos of other people, (n,).
        other_people: The person on each of these, (n,).
    """
    _, index, sizes = other_people.unique(return_inverse=True, return_counts=True)
    return 1 + _weight_above(photos.double(), others.double(), 1 / sizes.double()[index])


def _weight_above(scores: torch.Tensor, others: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weight of the others that score above each score, ties half; NaN where any score is NaN."""
    ordered, order = others.sort()
    below = torch.cat([torch.zeros(1, dtype=torch.float64), weights[order].cumsum(0)])
    lower, upper = (below[torch.searchsorted(ordered, scores.contiguous(), right=right)] for right in (False, True))
    above = below[-1] - (lower + upper) / 2
    return above.masked_fill(scores.isnan() | others.isnan().any(), math.nan)


def _first_places(people: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the probability that each person (p,) is first among that person and all others (q,), where ties are broken at random."""
    best = others.max() if len(others) else torch.tensor(-math.inf)
    first = torch.where(people > best, 1.0, torch.where(people == best, 1 / (1 + (others == best).sum()), 0.0)).double()
    return first.masked_fill(people.isnan() | others.isnan().any(), math.nan)


def batch_share(people: torch.Tensor, others: torch.Tensor) -> float:
    """Return which share of the highest k scores of all candidates is of the k forgotten people, ties broken at random; NaN with a NaN.

    Args:
        people: Scores of the forgotten people, (k,).
        others: Scores of all others, (q,).
    """
    scores = torch.cat([people, others])
    if scores.isnan().any():
        return math.nan
    count = len(people)
    threshold = scores.topk(count).values[-1]
    above, tied = int((scores > threshold).sum()), int((scores == threshold).sum())
    share_of_tied = int((people == threshold).sum()) / tied
    return (int((people > threshold).sum()) + (count - above) * share_of_tied) / count


def share_interval(successes: torch.Tensor, level: float = 0.95) -> Interval:
    """Return the exact interval for a share of people (Clopper and Pearson 1934), which has a width even where all or none succeed.

    Args:
        successes: Of each person, 0..1, (k,).
        level: Nominal coverage; the interval covers at least as much.
    """
    count, total = len(successes), successes.sum().item()
    if math.isnan(total):
        return Interval(math.nan, math.nan, math.nan, level, count)
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, total, count - total + 1)) if total > 0 else 0.0
    high = float(beta.ppf(1 - tail, total + 1, count - total)) if total < count else 1.0
    return Interval(total / count, low, high, level, count)
