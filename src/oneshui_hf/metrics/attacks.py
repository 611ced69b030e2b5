"""Membership attacks: can somebody who holds the unlearned model tell the photos it forgot from those of strangers?

Members are the photos of the forget set, non-members those of people the model never saw (the test set). What an attack achieves is judged
in one way for all of them, see `judging`; what it looks at is made by `signals`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..errors import UsageError
from .attack_scores import FPRS, Attack, Groups, balanced_share, deal_people, judge, outcome
from .attack_signals import Signals

PER_PHOTO_FROM = 64  # shadow models on a side; Carlini et al. 2022 find one variance for all photos better below


def loss_attack(
    members: torch.Tensor, nonmembers: torch.Tensor, identities: Groups, generator: torch.Generator, fprs: Sequence[float] = FPRS
) -> Attack:
    """Attack by the loss alone (Yeom et al. 2018): the score is the loss, negated.

    Read `auc_either_way`: a photo whose loss is far above a stranger's is as telling as one whose loss is far below.

    Args:
        members: Losses of the members (n,).
        nonmembers: Losses of the non-members (m,).
        identities: The person of each, (n,) and (m,).
        generator: Decides the halves of the people.
        fprs: Where to read the share of members caught.
    """
    return judge("loss", -members.double(), -nonmembers.double(), identities, generator, fprs)


def logistic_attack(
    members: torch.Tensor,
    nonmembers: torch.Tensor,
    identities: Groups,
    generator: torch.Generator,
    folds: int = 5,
    ridge: float = 1.0,
    fprs: Sequence[float] = FPRS,
) -> Attack:
    """Attack by a logistic regression that learns members from non-members, cross-validated over people.

    Nobody is scored by a regression that saw another photo of theirs. A score is the share of the fold's non-members that the regression
    puts lower (ties half): raw outputs, compared between folds whose regressions learned from each other's photos, lean below 0.5 where
    nothing can be told (0.476 with 5 and 10 people). The regression learns its direction, so that it sees forgetting too much.

    Args:
        members: Features of the members (n, f), see `confidence_features`.
        nonmembers: Features of the non-members (m, f).
        identities: The person of each, (n,) and (m,).
        generator: Deals the people out to folds.
        folds: At most so many; no more than there are people on a side.
        ridge: Weight of half the squared norm of the weights of standardised features, beside the summed loss.
        fprs: Where to read the share of members caught.

    Raises:
        UsageError: A side has fewer than two people.
    """
    dealt = [deal_people(ids, folds, generator) for ids in identities]
    used = min(folds, *(int(deal.max()) + 1 if len(deal) else 0 for deal in dealt))
    if used < 2:
        raise UsageError(
            "The logistic attack needs photos of two forgotten people and of two others, to be scored on people it did not see."
        )
    sides = (members.double(), nonmembers.double())
    in_fold = [deal % used for deal in dealt]
    scores = [torch.empty(len(side), dtype=torch.float64) for side in sides]
    accuracies = []
    for fold in range(used):
        seen = [side[of != fold] for side, of in zip(sides, in_fold, strict=True)]
        features = torch.cat(seen)
        centre, scale = features.mean(0), features.std(0, correction=0)
        scale = torch.where(scale > 0, scale, 1)
        truth = torch.cat([torch.ones(len(seen[0])), torch.zeros(len(seen[1]))]).double()
        weights, intercept = fit_logistic((features - centre) / scale, truth, ridge)
        guesses = [(side[of == fold] - centre) / scale @ weights + intercept for side, of in zip(sides, in_fold, strict=True)]
        accuracies.append(balanced_share(guesses[0], guesses[1], 0.0, 1))
        ordered = guesses[1].sort().values
        for score, of, guess in zip(scores, in_fold, guesses, strict=True):
            below, upto = (torch.searchsorted(ordered, guess, right=right) for right in (False, True))
            score[of == fold] = ((below + upto).double() / (2 * len(ordered))).masked_fill(guess.isnan(), math.nan)
    return outcome("logistic", scores[0], scores[1], fprs, balanced_accuracy=sum(accuracies) / used)


def fit_logistic(features: torch.Tensor, truth: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights (f,) and intercept of a logistic regression in which both classes weigh the same, by Newton's method.

    Minimises the sum over photos of n / (2 n_class) times the log-loss plus ridge / 2 times the squared norm of the weights.

    Args:
        features: float64 (n, f), standardised.
        truth: 0 or 1, float64 (n,); both must occur.
        ridge: Above 0, since the classes may be separable.
    """
    design = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
    importance = torch.where(truth == 1, len(truth) / (2 * truth.sum()), len(truth) / (2 * (1 - truth).sum()))
    penalty = torch.full((design.shape[1],), ridge, dtype=torch.float64)
    penalty[-1] = 0

    def objective(w: torch.Tensor) -> torch.Tensor:
        return (importance * F.softplus((1 - 2 * truth) * (design @ w))).sum() + (penalty * w**2).sum() / 2

    w = torch.zeros(design.shape[1], dtype=torch.float64)
    for _ in range(100):
        guessed = (design @ w).sigmoid()
        gradient = design.T @ (importance * (guessed - truth)) + penalty * w
        if not gradient.norm() > 1e-9 * len(truth):  # also where a feature is NaN
            break
        curvature = design.T @ (design * (importance * guessed * (1 - guessed)).unsqueeze(1)) + penalty.diag()
        step, length = torch.linalg.solve(curvature, gradient), 1.0
        while objective(w - length * step) > objective(w) and length > 1e-6:
            length /= 2
        w = w - length * step
    return w[:-1], w[-1]


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
) -> Attack:
    """Attack by RMIA, offline (Zarifzadeh, Liu, Shokri, "Low-Cost High-Power Membership Inference Attacks", ICML 2024).

    A photo's score is the share of population photos z that it dominates: LR(x) / LR(z) > gamma, where LR is the probability of the label
    under the attacked model over p, the probability under a model of which nobody knows whether it saw the photo. See `likelihood_ratios`.

    As published the score has one direction. Forgetting too much gives members a likelihood ratio *below* that of strangers; their score
    sinks to 0, where many strangers are, and an AUC below 0.5 is easily taken for success. With `two_sided`, the share of photos z that
    dominate x, LR(z) / LR(x) > gamma, is taken off the score, which so orders photos at the lower end as well; and in both cases
    `auc_either_way` is what an attacker achieves who knows to look in the other direction.

    a and gamma are fixed beforehand, at what the authors' configurations say for CIFAR-10 (privacytrustlab/ml_privacy_meter,
    research/2024_rmia): 0.3 and 2. Few classes that are learned well are nearest to labels of faces; for CIFAR-100 they take 0.6 and 2. The
    signal is the plain probability; their Taylor softmax with a temperature and their trimmed mean over references are not used.

    Args:
        members: Signals of the members.
        nonmembers: Signals of the non-members.
        population: Signals of the photos z, as they are (one version of each), of people in neither group.
        identities: The person of each member and non-member.
        generator: Decides the halves of the people.
        a: How much less likely a label is to a model that did not see the photo: p_in = a p_out + 1 - a.
        gamma: How much larger a likelihood ratio must be to dominate, 1 or more.
        two_sided: Take off the share of photos that dominate x.
        fprs: Where to read the share of members caught.

    Raises:
        UsageError: a or gamma is out of range, the shapes do not fit, or the population is empty or has several versions of a photo.
    """
    if gamma < 1:
        raise UsageError(f"RMIA's gamma is 1 or more, not {gamma}.")
    base = likelihood_ratios(population, a)
    if len(base) != 1 or not base.numel():
        raise UsageError("RMIA compares with photos of the population as they are; give one version of each, and at least one photo.")
    scores = [dominance(likelihood_ratios(side, a), base[0], gamma, two_sided) for side in (members, nonmembers)]
    return judge("rmia_two_sided" if two_sided else "rmia", scores[0], scores[1], identities, generator, fprs)


def likelihood_ratios(signals: Signals, a: float) -> torch.Tensor:
    """Return log LR of each version of each photo, float64 (q, n).

    With several attributes LR is the product over them of p_theta,k / p_k, where p_k = (1 + a) / 2 * mean over references of p_out,k
    + (1 - a) / 2. That p is the mean of p_out and of p_in = a p_out + 1 - a, a linear approximation of one class probability, so it is
    made for each attribute and not for the probability of all of them together.

    Args:
        signals: Log-probabilities under the attacked model and the references.
        a: 0..1.

    Raises:
        UsageError: a is out of range, or the shapes do not fit.
    """
    if not 0 <= a <= 1:
        raise UsageError(f"RMIA's a lies between 0 and 1, not at {a}.")
    target, references = signals.target, signals.references
    if target.dim() not in (2, 3) or references.shape[1:] != target.shape or not len(references):
        raise UsageError(
            f"RMIA takes log-probabilities (photos, labels) or (versions, photos, labels) and the same with the references in front; "
            f"it was given {tuple(target.shape)} and {tuple(references.shape)}."
        )
    if target.dim() == 2:
        target, references = target.unsqueeze(0), references.unsqueeze(1)
    out = references.double().logsumexp(dim=0) - math.log(len(references))
    known = out + math.log((1 + a) / 2)
    mixed = torch.logaddexp(known, torch.full_like(out, math.log((1 - a) / 2))) if a < 1 else known
    return (target.double() - mixed).sum(dim=-1)


def dominance(ratios: torch.Tensor, population: torch.Tensor, gamma: float, two_sided: bool = False) -> torch.Tensor:
    """Return RMIA's score of each photo, float64 (n,): the share of the population that it dominates.

    With several versions of x, x dominates z where more than half of its versions do (the paper's vote). "More than half of q numbers lie
    above z" is "the lower median lies above z", so one number a photo and one sorted population are enough, whatever their sizes.

    Args:
        ratios: log LR of the photos, (q, n).
        population: log LR of the population, (z,).
        gamma: Factor by which a ratio must be larger.
        two_sided: Take off the share of the population that dominates the photo, by the same vote.
    """
    ordered, margin = population.sort().values, math.log(gamma)
    lower = ratios.median(dim=0).values  # of an even number torch takes the lower
    score = torch.searchsorted(ordered, (lower - margin).contiguous(), right=False).double()
    if two_sided:
        upper = -(-ratios).median(dim=0).values
        score -= len(ordered) - torch.searchsorted(ordered, (upper + margin).contiguous(), right=True).double()
    unknown = ratios.isnan().any(dim=0) | population.isnan().any()
    return (score / len(ordered)).masked_fill(unknown, math.nan)


def u_lira(unlearned: torch.Tensor, oracles: torch.Tensor, fprs: Sequence[float] = FPRS) -> Attack:
    """Attack by U-LiRA (Hayes et al. 2024): photo by photo, is this model an unlearned one, or one that never saw the photo?

    Both sides are asked about the *same* photos of the forget set. In each round one unlearned model and one oracle are the attacked
    ones, a member and a non-member for every photo, and the others are the attacker's shadow models: each side's scaled logits get a
    Gaussian (Carlini et al. 2022), attributes apart, and the score is the log of its likelihood ratio. Means are a photo's own, so
    photos that are forgotten too much and photos that are forgotten too little are both recognised: the attack is two-sided by itself. AUC,
    accuracy and shares are means over rounds, since a round is an experiment of its own.

    Variances are a photo's own from 64 shadow models on a side; with fewer, one for all photos (of each attribute), and with a single
    shadow model the other side's, or 1. A mean of r models is itself uncertain: all are widened by 1 + 1/r.

    With one unlearned model there is no shadow of it: the score is minus the log-density under the oracles, which grows with the distance
    in either direction, and there is no threshold.

    Args:
        unlearned: Scaled logits of the forget set under models that unlearned it, one a seed, (u, n, K); see `scaled_logits`.
        oracles: The same under models retrained without it, (o, n, K), at least two.
        fprs: Where to read the share of members caught.

    Raises:
        UsageError: There are too few models, or the shapes do not fit.
    """
    if unlearned.dim() != 3 or unlearned.shape[1:] != oracles.shape[1:] or len(unlearned) < 1 or len(oracles) < 2:
        raise UsageError(
            f"U-LiRA takes logits (models, photos, labels) of one or more unlearned models and of two or more oracles on the same photos; "
            f"it was given {tuple(unlearned.shape)} and {tuple(oracles.shape)}."
        )
    sides = (unlearned.double(), oracles.double())
    shadowed = len(unlearned) > 1
    rounds = [(number if shadowed else 0, number) for number in range(min(len(unlearned), len(oracles)) if shadowed else len(oracles))]
    scores: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for attacked in rounds:
        shadows = [torch.cat([side[:out], side[out + 1 :]]) for side, out in zip(sides, attacked, strict=True)]
        variances = _variances(shadows)
        for found, side, out in zip(scores, sides, attacked, strict=True):
            densities = [
                _log_density(side[out], shadow, variance) for shadow, variance in zip(shadows, variances, strict=True) if len(shadow)
            ]
            found.append(densities[0] - densities[1] if shadowed else -densities[0])
    members, nonmembers = (torch.stack(found) for found in scores)
    accuracy = sum(balanced_share(m, n, 0.0, 1) for m, n in zip(members, nonmembers, strict=True)) / len(rounds) if shadowed else math.nan
    return outcome("u_lira", members, nonmembers, fprs, balanced_accuracy=accuracy)


def _variances(shadows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return each side's variance of a photo's signal over models, (n, K) or (1, K), from shadow models (r, n, K) on either side."""
    own = [
        shadow.var(dim=0) if len(shadow) >= PER_PHOTO_FROM else shadow.var(dim=0).mean(dim=0, keepdim=True) if len(shadow) > 1 else None
        for shadow in shadows
    ]
    known = [variance for variance in own if variance is not None]
    other = known[0] if known else torch.ones(1, 1, dtype=torch.float64)
    return [(variance if variance is not None else other).clamp(min=1e-12) for variance in own]


def _log_density(signal: torch.Tensor, shadow: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Return the Gaussian log-density (n,) of signals (n, K), attributes apart, around the mean of shadow models (r, n, K)."""
    widened = variance * (1 + 1 / len(shadow))
    return -((signal - shadow.mean(dim=0)) ** 2 / widened + widened.log() + math.log(2 * math.pi)).sum(dim=-1) / 2
