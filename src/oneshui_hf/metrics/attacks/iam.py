"""IAM (Wang et al. 2025): how far is a model's response between those of a model that generalises and of a perfect fit?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ...errors import UsageError
from ..attack_scores import FPRS, AttackResult, Groups, score_attack
from ..attack_signals import Signals

BOUND, SHIFT = 1e-2, 1e-5  # e1 and e2 of the paper: they bound the signal for probabilities of 1 and 0
LEVELS = 11  # of the interpolation, both ends included
EULER = 0.5772156649015329


def iam(
    members: Signals,
    nonmembers: Signals,
    population: Signals,
    identities: Groups,
    generator: torch.Generator,
    fprs: Sequence[float] = FPRS,
) -> AttackResult:
    """Attack by IAM, interpolated approximate measurement, with one or more reference models.

    Source: Wang, Li, Xiang, Cao, Wang, "Towards Lifecycle Unlearning Commitment Management: Measuring Sample-level Unlearning
    Completeness", USENIX Security 2025 (arXiv 2506.06112). From it: the signal r = -log(e1 - log(p + e2)) of the probability p of the
    label, with e1 = 1e-2 and e2 = 1e-5, follows a Gumbel distribution; between generalisation and a full fit there are levels of
    responses; a Gumbel distribution is fitted by moments at each level; and the score is the mean over levels of its distribution function
    at the model's own signal. 0 is pure generalisation, 1 a full fit, and 1 minus the score is the completeness of unlearning.

    Implemented here, where the paper's abstract and summaries leave it open or the setting differs:

    - Generalisation is the mean probability of the reference models, and a full fit is p = 1. The paper takes the original's response for
      the latter. The original fits the members only, so with its response the score would separate members from non-members for any
      model, even an oracle.
    - The levels are p_l = (1 - l) p_out + l for 11 values of l from 0 to 1, and all have the same weight.
    - With few reference models a photo has no moments of its own. The moments are those of the model's signal minus the reference's,
      r(p) - r(p_out), over the photos of the population, so that a difference that all photos share does not count.
    - With several attributes, each has its own signals, moments and score, and the photo's score is their mean.

    The score has one direction, so a model that forgets too much has an AUC below 0.5; `auc_best_direction` covers both. It cannot
    distinguish an easy photo on which the references fail from a memorised one.

    Args:
        members: Signals of the members, one version of each photo.
        nonmembers: Signals of the non-members, the same.
        population: Signals of photos of people in neither group, the same.
        identities: The person on each member and non-member photo.
        generator: Draws the halves of the people.
        fprs: False positive rates at which the TPR is reported.

    Raises:
        UsageError: The population has no photo.
    """
    if not population.target.shape[-2]:
        raise UsageError("IAM's population needs at least one photo.")
    scores = [iam_scores(side, population) for side in (members, nonmembers)]
    return score_attack("iam", scores[0], scores[1], identities, generator, fprs)


def iam_scores(signals: Signals, population: Signals) -> torch.Tensor:
    """Return the score of each photo, 0..1, float64 (n,).

    Args:
        signals: Of the photos, (n, K) and (r, n, K).
        population: Of photos that no model was trained on, (z, K) and (r, z, K).
    """
    location, scale = fit_gumbel(gumbel_signal(population.target.double().exp()) - gumbel_signal(_generalisation(population)))
    own, generalisation = gumbel_signal(signals.target.double().exp()), _generalisation(signals)
    shares = torch.zeros_like(own)
    for level in torch.linspace(0, 1, LEVELS, dtype=torch.float64):
        expected = gumbel_signal((1 - level) * generalisation + level) + location
        shares += torch.exp(-torch.exp(-(own - expected) / scale))
    return shares.mean(dim=-1) / LEVELS


def _generalisation(signals: Signals) -> torch.Tensor:
    """Return the mean probability of the label under the reference models, float64 (n, K)."""
    return signals.references.double().exp().mean(dim=0)


def gumbel_signal(probabilities: torch.Tensor) -> torch.Tensor:
    """Return r = -log(e1 - log(p + e2)), about -2.4 for p = 0 and 4.6 for p = 1."""
    return -(BOUND - (probabilities + SHIFT).log()).log()


def fit_gumbel(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return location and scale (K,) of the Gumbel distribution (of maxima) with the mean and the variance of values (n, K)."""
    scale = (values.std(dim=0, correction=0) * math.sqrt(6) / math.pi).clamp(min=1e-12)
    return values.mean(dim=0) - EULER * scale, scale
