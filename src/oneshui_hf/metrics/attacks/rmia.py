"""RMIA: a likelihood ratio test against reference models and a population (Zarifzadeh, Liu, Shokri, ICML 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ...errors import UsageError
from ..attack_scores import FPRS, AttackResult, Groups, score_attack
from ..attack_signals import Signals


def rmia(
    members: Signals,
    nonmembers: Signals,
    population: Signals,
    identities: Groups,
    generator: torch.Generator,
    a: float = 0.3,
    gamma: float = 2.0,
    two_sided: bool = False,
    fprs: Sequence[float] = FPRS,
) -> AttackResult:
    """Attack by RMIA, offline (Zarifzadeh, Liu, Shokri, "Low-Cost High-Power Membership Inference Attacks", ICML 2024).

    A photo's score is the share of population photos z that it dominates: LR(x) / LR(z) > gamma. LR is the probability of the label
    under the attacked model divided by p, its probability under a model that may or may not have been trained on the photo. See
    `log_likelihood_ratios`.

    The published score has one direction. Members that are forgotten too much have a likelihood ratio *below* that of unseen identities.
    Their score drops to 0, where many unseen identities are, and an AUC below 0.5 is easily mistaken for success. With `two_sided`, the
    share of photos z that dominate x, LR(z) / LR(x) > gamma, is subtracted, so that the score also orders photos at the lower end. In both
    cases `auc_best_direction` is the AUC of an attacker who knows the direction.

    a and gamma are fixed in advance to the authors' configuration for CIFAR-10 (privacytrustlab/ml_privacy_meter, research/2024_rmia):
    0.3 and 2. Few classes that are learned well are closest to face labels; for CIFAR-100 they use 0.6 and 2. The signal is the plain
    probability. Their Taylor softmax with temperature and their trimmed mean over references are not used.

    Args:
        members: Signals of the members.
        nonmembers: Signals of the non-members.
        population: Signals of the photos z, one version of each, of people in neither group.
        identities: The person on each member and non-member photo.
        generator: Draws the halves of the people.
        a: How much less likely a label is under a model that was not trained on the photo: p_in = a p_out + 1 - a.
        gamma: Factor by which a likelihood ratio must be larger to dominate, 1 or more.
        two_sided: Subtract the share of photos that dominate x.
        fprs: False positive rates at which the TPR is reported.

    Raises:
        UsageError: a or gamma is out of range, the shapes do not match, or the population is empty or has several versions of a photo.
    """
    if gamma < 1:
        raise UsageError(f"RMIA's gamma must be 1 or more, not {gamma}.")
    base = log_likelihood_ratios(population, a)
    if len(base) != 1 or not base.numel():
        raise UsageError("RMIA's population needs at least one photo, and exactly one version of each photo.")
    scores = [dominance(log_likelihood_ratios(side, a), base[0], gamma, two_sided) for side in (members, nonmembers)]
    return score_attack("rmia_two_sided" if two_sided else "rmia", scores[0], scores[1], identities, generator, fprs)


def log_likelihood_ratios(signals: Signals, a: float) -> torch.Tensor:
    """Return log LR of each version of each photo, float64 (q, n).

    With several attributes LR is the product over attributes k of p_theta,k / p_k, with p_k = (1 + a) / 2 * (mean over references of
    p_out,k) + (1 - a) / 2. This p_k is the mean of p_out and p_in = a p_out + 1 - a. The linear approximation of p_in holds for one
    class probability, so it is applied per attribute and not to the joint probability.

    Args:
        signals: Log-probabilities under the attacked model and the references.
        a: 0..1.

    Raises:
        UsageError: a is out of range, or the shapes do not match.
    """
    if not 0 <= a <= 1:
        raise UsageError(f"RMIA's a must lie between 0 and 1, not {a}.")
    target, references = signals.target, signals.references
    if target.dim() not in (2, 3) or references.shape[1:] != target.shape or not len(references):
        raise UsageError(
            f"RMIA takes log-probabilities (photos, labels) or (versions, photos, labels), and the same with a leading dimension of "
            f"references; it was given {tuple(target.shape)} and {tuple(references.shape)}."
        )
    if target.dim() == 2:
        target, references = target.unsqueeze(0), references.unsqueeze(1)
    p_out = references.double().logsumexp(dim=0) - math.log(len(references))
    scaled = p_out + math.log((1 + a) / 2)
    p = torch.logaddexp(scaled, torch.full_like(p_out, math.log((1 - a) / 2))) if a < 1 else scaled
    return (target.double() - p).sum(dim=-1)


def dominance(ratios: torch.Tensor, population: torch.Tensor, gamma: float, two_sided: bool = False) -> torch.Tensor:
    """Return RMIA's score of each photo, float64 (n,): the share of the population that it dominates.

    With several versions of x, x dominates z where more than half of its versions do (the paper's majority vote). "More than half of q
    numbers are above z" equals "the lower median is above z", so one number per photo and one sorted population suffice for any size.

    Args:
        ratios: log LR of the photos, (q, n).
        population: log LR of the population, (z,).
        gamma: Factor by which a ratio must be larger.
        two_sided: Subtract the share of the population that dominates the photo, by the same vote.
    """
    ordered, margin = population.sort().values, math.log(gamma)
    lower = ratios.median(dim=0).values  # torch returns the lower of two middle values
    score = torch.searchsorted(ordered, (lower - margin).contiguous(), right=False).double()
    if two_sided:
        upper = -(-ratios).median(dim=0).values
        score -= len(ordered) - torch.searchsorted(ordered, (upper + margin).contiguous(), right=True).double()
    is_unknown = ratios.isnan().any(dim=0) | population.isnan().any()
    return (score / len(ordered)).masked_fill(is_unknown, math.nan)
