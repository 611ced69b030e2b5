"""The range attack on people (Tao and Shokri 2024): was the model trained on any photo of this person?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..attack_scores import FPRS, AttackResult, Groups, score_attack

TRIM = 0.25  # share of a person's photos that is left out at either end: the mean of the middle half


def person_range_attack(
    members: torch.Tensor,
    nonmembers: torch.Tensor,
    identities: Groups,
    generator: torch.Generator,
    fprs: Sequence[float] = FPRS,
) -> AttackResult:
    """Attack by RaMIA with a range that is a person (Tao, Shokri, "Range Membership Inference Attacks", 2024, arXiv 2408.05131).

    The attacker has photos of a person, not necessarily those of the training, and the question is whether the model was trained on any.
    The score of a person is the trimmed mean of the photos' membership scores, here of RMIA's log likelihood ratio, see
    `rmia.log_likelihood_ratios`. The logarithm keeps one photo from deciding. The paper chooses the quantiles between which it averages
    for each data set; here the middle half of the photos is averaged for all, fixed beforehand.

    Direction: a higher score means that the person was more likely in the training set; an AUC of 0.5 is chance.

    One score a person, so `tpr` resolves no rate below 1 / people, and a difference of single photos cannot be seen.

    Args:
        members: log LR of photos of the people in question, (n,), both those of the training and others, such as support photos.
        nonmembers: log LR of photos of unseen identities, (m,).
        identities: The person on each photo, (n,) and (m,).
        generator: Draws the halves of the people.
        fprs: False positive rates at which the TPR is reported.
    """
    scores = [person_scores(side, people) for side, people in zip((members, nonmembers), identities, strict=True)]
    people = torch.arange(len(scores[0])), torch.arange(len(scores[1]))
    return score_attack("person_range", scores[0], scores[1], people, generator, fprs)


def person_scores(ratios: torch.Tensor, identities: torch.Tensor, trim: float = TRIM) -> torch.Tensor:
    """Return the trimmed mean of each person's photos, float64 (people,), in ascending order of the people's numbers.

    Of n photos the lowest and the highest `trim` n, rounded down, are left out. NaN where a photo of the person is NaN.

    Args:
        ratios: Scores of photos, (n,).
        identities: The person on each photo, integers (n,).
        trim: Below 0.5.
    """
    order = torch.argsort(identities, stable=True)
    _, sizes = identities[order].unique_consecutive(return_counts=True)
    return torch.stack([trimmed_mean(of_person, trim) for of_person in ratios[order].double().split(sizes.tolist())])


def trimmed_mean(values: torch.Tensor, trim: float = TRIM) -> torch.Tensor:
    """Return the mean of values (n,) without the lowest and the highest `trim` n, rounded down; NaN where one is NaN."""
    cut = int(trim * len(values))
    mean = values.sort().values[cut : len(values) - cut].mean()
    return mean.masked_fill(values.isnan().any(), math.nan)
