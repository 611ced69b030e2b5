"""What an audit found: scores per candidate, who stands out, and sentences about it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import mannwhitneyu

from ...errors import UsageError, nearest
from ...metrics.intervals import interval_ends
from ...metrics.outliers import HighOutliers, most_outliers, person_outliers
from ...metrics.owner_identification import OwnerIdentification, identify_owners, person_means, person_ranks
from ...seeding import generator
from .table import TITLES

FAMILY_WISE_ERROR = 0.05  # of all attacks on one difference together
FEW_CANDIDATES, FEW_PHOTOS = 20, 4  # below, the test finds little
# The loss rise of a candidate is a mean over labels and photos. Most losses hardly change and a few change much, so that a mean of few has
# a long tail: on faces, among 36 candidates, none of them forgotten, the test at a level of 5 % found an outlier in 24 to 41 % of the
# samples with up to 12 losses each, in 20 % with 40, and in 7 % with 80.
MIN_LOSSES = 80


@dataclass(frozen=True, eq=False)
class Attack:
    """One attack on the difference of two models.

    Attributes:
        scores: Of each candidate, the mean over the photos, float64 (P,). Higher: more likely forgotten.
        ranks: Of each candidate, 1 is the highest score, ties half, (P,).
        outliers: The candidates who stand out; None where the scores are ranked and not tested.
        owners: How well the scores identify those who are known to be forgotten; None where none is known.
    """

    scores: torch.Tensor
    ranks: torch.Tensor
    outliers: HighOutliers | None
    owners: Owners | None

    @property
    def found(self) -> tuple[int, ...]:
        """The numbers of the candidates who stand out."""
        return self.outliers.positions if self.outliers else ()


@dataclass(frozen=True)
class Owners:
    """How well scores identify the people who are known to be forgotten.

    Attributes:
        ranks: Their ranks, with intervals.
        by_chance: Probability that their scores are so high where they do not differ from all others (Mann and Whitney 1947, one-sided).
    """

    ranks: OwnerIdentification
    by_chance: float


def run_attacks(
    photo_scores: Mapping[str, torch.Tensor], identities: torch.Tensor, forgotten: Sequence[int], untested: Collection[str], seed: int
) -> dict[str, Attack]:
    """Return the attacks on one difference, by name.

    Args:
        photo_scores: Of each attack, (n,).
        identities: The candidate on each photo, (n,); every candidate has one.
        forgotten: The numbers of the candidates who are known to be forgotten.
        untested: Attacks whose scores are ranked only.
        seed: Of the intervals.
    """
    level = FAMILY_WISE_ERROR / len(photo_scores.keys() - set(untested))  # Bonferroni
    found = {}
    for name, values in photo_scores.items():
        scores = person_means(values, identities)
        owners = None
        if forgotten and len(forgotten) < len(scores):
            ranks = identify_owners(values, identities, torch.tensor(forgotten), generator(seed, "audit", name))
            is_forgotten = torch.isin(torch.arange(len(scores)), torch.tensor(forgotten))
            test = mannwhitneyu(scores[is_forgotten].numpy(), scores[~is_forgotten].numpy(), alternative="greater")
            owners = Owners(ranks, float(test.pvalue))
        own_ranks = person_ranks(scores, scores) - 0.5  # each person ties with itself
        found[name] = Attack(scores, own_ranks, None if name in untested else person_outliers(scores, level), owners)
    return found


def untested_attacks(photos: torch.Tensor, losses_per_photo: int) -> tuple[str, ...]:
    """Return the attacks whose scores are ranked only, since the test would not hold its error.

    Args:
        photos: The number of photos of each candidate, (P,).
        losses_per_photo: The number of labels; 1 where the labels are classes.
    """
    return ("loss_rise",) if photos.median().item() * losses_per_photo < MIN_LOSSES else ()


def standing_out(attacks: Mapping[str, Attack]) -> set[int]:
    """Return the numbers of the candidates who stand out in any attack."""
    return {position for attack in attacks.values() for position in attack.found}


def forgotten_numbers(names: Sequence[str], people: Sequence[str], where: str) -> list[int]:
    """Return the numbers of the candidates with these names.

    Raises:
        UsageError: A name is no candidate's.
    """
    for name in names:
        if name not in people:
            raise UsageError(f"--forgotten {name} is no candidate in {where}.{nearest(name, people)}")
    return sorted({people.index(name) for name in names})


def attack_fields(attacks: Mapping[str, Attack]) -> dict[str, Any]:
    """Return the numbers of each attack as JSON."""
    return {
        name: {
            "needed": attack.outliers.needed if attack.outliers else None,
            "stand_out": len(attack.found),
            "forgotten": _owner_fields(attack.owners) if attack.owners else None,
        }
        for name, attack in attacks.items()
    }


def _owner_fields(owners: Owners) -> dict[str, Any]:
    return {
        "people": owners.ranks.people,
        "candidates": owners.ranks.candidates,
        "rank": owners.ranks.rank.value,
        "rank_interval": interval_ends(owners.ranks.rank),
        "rank_1_share": owners.ranks.rank_1_share.value,
        "top_k_share": owners.ranks.batch_share,
        "by_chance": owners.by_chance,
    }


def people_fields(
    names: Sequence[str], photos: torch.Tensor, forgotten: Sequence[int], attacks: Mapping[str, Attack], oracle: Mapping[str, Attack]
) -> list[dict[str, Any]]:
    """Return the scores and ranks of each candidate as JSON, those who stand out first, then by their best rank."""

    def of(number: int) -> dict[str, Any]:
        row = {
            "number": number + 1,
            "name": names[number],
            "photos": int(photos[number]),
            "forgotten": number in forgotten,
            "stands_out": [name for name, attack in attacks.items() if number in attack.found],
            "scores": {name: attack.scores[number].item() for name, attack in attacks.items()},
            "ranks": {name: attack.ranks[number].item() for name, attack in attacks.items()},
        }
        if oracle:
            row["oracle_stands_out"] = [name for name, attack in oracle.items() if number in attack.found]
            row["oracle_ranks"] = {name: attack.ranks[number].item() for name, attack in oracle.items()}
        return row

    rows = [of(number) for number in range(len(names))]
    return sorted(rows, key=lambda row: (-len(row["stands_out"]), sorted(row["ranks"].values()), row["number"]))


def verdict(attacks: Mapping[str, Attack], oracle: Mapping[str, Attack], forgotten: Sequence[int], candidates: int) -> str:
    """Return the verdict: one sentence, and a second one where an oracle is the floor."""
    found = standing_out(attacks)
    sentence = _verdict(found, forgotten, candidates, attacks)
    if not oracle:
        return sentence
    floor = standing_out(oracle)
    both = len(found & floor)
    also = f", {both} of them the same" if both and found else ""
    ranked = ", and ranks the forgotten far above chance, too" if _ranked_far_above_chance(oracle) else ""
    return f"{sentence} The difference of the oracle, the floor, points at {len(floor)} of {candidates}{also}{ranked}."


def _verdict(found: set[int], forgotten: Sequence[int], candidates: int, attacks: Mapping[str, Attack]) -> str:
    start = f"The difference of the two models points at {len(found)} of {candidates} candidates"
    end = "a leak with scores below those needed to stand out cannot be excluded"
    if not forgotten:
        if found:
            return f"{start}: an attacker with both models learns who was forgotten."
        return f"No candidate stands out among {candidates}; {end}."
    if found == set(forgotten):
        one, who = ("person who was", "this person") if len(found) == 1 else ("people who were", "them")
        return f"{start}, exactly the {one} forgotten: an attacker with both models identifies {who}."
    if right := len(found & set(forgotten)):
        return f"{start}, {right} of the {len(forgotten)} forgotten among them: an attacker with both models learns who was forgotten."
    if ranked := _ranked_far_above_chance(attacks):
        name, share = ranked
        return (
            f"No single person stands out among {candidates} candidates, but {share:.0%} of the {len(forgotten)} with the highest "
            f"{TITLES[name]} are forgotten people, far more than by chance: an attacker with both models learns who was forgotten."
        )
    if found:
        return f"{start}, but at none of the {len(forgotten)} known to be forgotten; {end}."
    return f"No candidate stands out among {candidates}, and the forgotten rank no higher than by chance; {end}."


def _ranked_far_above_chance(attacks: Mapping[str, Attack]) -> tuple[str, float] | None:
    """Return the attack by which forgotten people rank highest, and the share of the top k that is right; None if that may be chance."""
    known = [(attack.owners.by_chance, name, attack.owners.ranks.batch_share) for name, attack in attacks.items() if attack.owners]
    if not known:
        return None
    by_chance, name, share = min(known)
    return (name, share) if by_chance < FAMILY_WISE_ERROR / len(attacks) else None


def limits(attacks: Mapping[str, Attack], candidates: int, photos: int, forgotten: Sequence[int]) -> list[str]:
    """Return sentences on what an audit cannot show."""
    found = standing_out(attacks)
    sentences = [
        f"Who stands out is tested for up to {most_outliers(candidates)} candidates, with a probability of about "
        f"{FAMILY_WISE_ERROR:.0%} that anyone stands out by chance, over all attacks together.",
        "If more candidates were forgotten, they can hide each other. If the forgotten person is no candidate, no one can be found.",
    ]
    if candidates < FEW_CANDIDATES:
        sentences.append(f"With {candidates} candidates only a very large leak is found; {FEW_CANDIDATES} or more are better.")
    if photos < FEW_PHOTOS * candidates:
        sentences.append(
            f"With fewer than {FEW_PHOTOS} photos per candidate, many leaks stay below the scores that are needed; with one photo each, "
            "someone stands out by chance about twice as often."
        )
    if found and not forgotten:
        sentences.append("A candidate can stand out for another reason: photos unlike those of all others, or labels that are wrong.")
    sentences.append("A failed attack proves nothing: a stronger one, or other photos of the same people, may succeed.")
    return sentences
