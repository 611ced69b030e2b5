"""U-LiRA: a per-photo likelihood ratio test between unlearned models and oracles (Hayes et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ...errors import UsageError
from ..attack_scores import FPRS, AttackResult, attack_metrics, balanced_accuracy_at

PER_PHOTO_FROM = 64  # shadow models per side; Carlini et al. 2022 find a shared variance better with fewer


def u_lira(unlearned: torch.Tensor, oracles: torch.Tensor, fprs: Sequence[float] = FPRS) -> AttackResult:
    """Attack by U-LiRA (Hayes et al. 2024): per photo, is this model an unlearned model, or was it never trained on the photo?

    Both sides are scored on the *same* photos of the forget set. In each round one unlearned model and one oracle are attacked, and give
    one member and one non-member score per photo. All others are shadow models: a Gaussian is fitted to each side's scaled logits (Carlini
    et al. 2022), independently per attribute, and the score is the log-likelihood ratio. Means are per photo, so photos that are forgotten
    too much and photos that are forgotten too little are both detected: the attack is inherently two-sided. AUC, accuracy and TPRs are
    means over rounds, since each round is a separate experiment.

    Variances are per photo from 64 shadow models on a side. With fewer, one variance is shared by all photos (per attribute). With a
    single shadow model the other side's variance is used, or 1. A mean of r models is itself uncertain, so all variances are multiplied
    by 1 + 1/r.

    With one unlearned model there is no shadow model of it. The score is then minus the log-density under the oracles, which grows with the
    distance in either direction, and there is no threshold.

    Args:
        unlearned: Scaled logits of the forget set under models that unlearned it, one per seed, (u, n, K); see `scaled_logits`.
        oracles: The same under models retrained without it, (o, n, K), at least two.
        fprs: False positive rates at which the TPR is reported.

    Raises:
        UsageError: There are too few models, or the shapes do not match.
    """
    if unlearned.dim() != 3 or unlearned.shape[1:] != oracles.shape[1:] or len(unlearned) < 1 or len(oracles) < 2:
        raise UsageError(
            f"U-LiRA takes logits (models, photos, labels) of one or more unlearned models and of two or more oracles on the same photos; "
            f"it was given {tuple(unlearned.shape)} and {tuple(oracles.shape)}."
        )
    sides = (unlearned.double(), oracles.double())
    has_shadows = len(unlearned) > 1
    count = min(len(unlearned), len(oracles)) if has_shadows else len(oracles)
    rounds = [(number if has_shadows else 0, number) for number in range(count)]
    scores: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for attacked in rounds:
        shadows = [torch.cat([side[:out], side[out + 1 :]]) for side, out in zip(sides, attacked, strict=True)]
        variances = _variances(shadows)
        for found, side, out in zip(scores, sides, attacked, strict=True):
            densities = [
                _log_density(side[out], shadow, variance) for shadow, variance in zip(shadows, variances, strict=True) if len(shadow)
            ]
            found.append(densities[0] - densities[1] if has_shadows else -densities[0])
    members, nonmembers = (torch.stack(found) for found in scores)
    accuracies = [balanced_accuracy_at(m, n, 0.0, 1) for m, n in zip(members, nonmembers, strict=True)]
    accuracy = sum(accuracies) / len(rounds) if has_shadows else math.nan
    return attack_metrics("u_lira", members, nonmembers, fprs, balanced_accuracy=accuracy)


def _variances(shadows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return each side's variance of a photo's signal over models, (n, K) or (1, K), from shadow models (r, n, K) on either side."""
    own = [
        shadow.var(dim=0) if len(shadow) >= PER_PHOTO_FROM else shadow.var(dim=0).mean(dim=0, keepdim=True) if len(shadow) > 1 else None
        for shadow in shadows
    ]
    known = [variance for variance in own if variance is not None]
    fallback = known[0] if known else torch.ones(1, 1, dtype=torch.float64)
    return [(variance if variance is not None else fallback).clamp(min=1e-12) for variance in own]


def _log_density(signal: torch.Tensor, shadow: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Return the Gaussian log-density (n,) of signals (n, K), independent per attribute, around the mean of shadow models (r, n, K)."""
    widened = variance * (1 + 1 / len(shadow))
    return -((signal - shadow.mean(dim=0)) ** 2 / widened + widened.log() + math.log(2 * math.pi)).sum(dim=-1) / 2
