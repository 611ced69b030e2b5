"""The logistic attack: a cross-validated logistic regression on loss and confidence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ...errors import UsageError
from ..attack_scores import FPRS, AttackResult, Groups, assign_folds, attack_metrics, balanced_accuracy_at


def logistic_attack(
    members: torch.Tensor,
    nonmembers: torch.Tensor,
    identities: Groups,
    generator: torch.Generator,
    folds: int = 5,
    ridge: float = 1.0,
    fprs: Sequence[float] = FPRS,
) -> AttackResult:
    """Attack by a logistic regression trained to separate members from non-members, cross-validated over people.

    No photo is scored by a regression that was trained on another photo of the same person. A score is the share of the fold's non-members
    with a lower output (ties half). Raw outputs of different folds are not comparable: each regression was trained on the other folds'
    photos, which biases the AUC below 0.5 where members and non-members are indistinguishable (0.476 with 5 and 10 people). The
    regression learns its direction, so the attack also detects photos that are forgotten too much.

    Args:
        members: Features of the members (n, f), see `confidence_features`.
        nonmembers: Features of the non-members (m, f).
        identities: The person on each photo, (n,) and (m,).
        generator: Assigns the people to folds.
        folds: Maximum number of folds; no more are used than there are people on a side.
        ridge: Weight of half the squared norm of the weights of standardised features, added to the summed loss.
        fprs: False positive rates at which the TPR is reported.

    Raises:
        UsageError: A side has fewer than two people.
    """
    assigned = [assign_folds(ids, folds, generator) for ids in identities]
    used = min(folds, *(int(of.max()) + 1 if len(of) else 0 for of in assigned))
    if used < 2:
        raise UsageError(
            "The logistic attack needs photos of two forgotten people and of two others, so that it scores only people "
            "that it was not trained on."
        )
    sides = (members.double(), nonmembers.double())
    fold_of = [of % used for of in assigned]
    scores = [torch.empty(len(side), dtype=torch.float64) for side in sides]
    accuracies = []
    for fold in range(used):
        training = [side[of != fold] for side, of in zip(sides, fold_of, strict=True)]
        features = torch.cat(training)
        centre, scale = features.mean(0), features.std(0, correction=0)
        scale = torch.where(scale > 0, scale, 1)
        targets = torch.cat([torch.ones(len(training[0])), torch.zeros(len(training[1]))]).double()
        weights, intercept = fit_logistic((features - centre) / scale, targets, ridge)
        outputs = [(side[of == fold] - centre) / scale @ weights + intercept for side, of in zip(sides, fold_of, strict=True)]
        accuracies.append(balanced_accuracy_at(outputs[0], outputs[1], 0.0, 1))
        ordered = outputs[1].sort().values
        for score, of, output in zip(scores, fold_of, outputs, strict=True):
            below, up_to = (torch.searchsorted(ordered, output, right=right) for right in (False, True))
            score[of == fold] = ((below + up_to).double() / (2 * len(ordered))).masked_fill(output.isnan(), math.nan)
    return attack_metrics("logistic", scores[0], scores[1], fprs, balanced_accuracy=sum(accuracies) / used)


def fit_logistic(features: torch.Tensor, targets: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights (f,) and intercept of a logistic regression with balanced class weights, fitted by Newton's method.

    Minimises the sum over photos of n / (2 n_class) times the log-loss, plus ridge / 2 times the squared norm of the weights.

    Args:
        features: float64 (n, f), standardised.
        targets: 0 or 1, float64 (n,); both must occur.
        ridge: Above 0, since the classes may be separable.
    """
    design = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
    sample_weight = torch.where(targets == 1, len(targets) / (2 * targets.sum()), len(targets) / (2 * (1 - targets).sum()))
    penalty = torch.full((design.shape[1],), ridge, dtype=torch.float64)
    penalty[-1] = 0

    def objective(w: torch.Tensor) -> torch.Tensor:
        return (sample_weight * F.softplus((1 - 2 * targets) * (design @ w))).sum() + (penalty * w**2).sum() / 2

    w = torch.zeros(design.shape[1], dtype=torch.float64)
    for _ in range(100):
        predicted = (design @ w).sigmoid()
        gradient = design.T @ (sample_weight * (predicted - targets)) + penalty * w
        if not gradient.norm() > 1e-9 * len(targets):  # `not >` also stops on a NaN feature
            break
        hessian = design.T @ (design * (sample_weight * predicted * (1 - predicted)).unsqueeze(1)) + penalty.diag()
        step, length = torch.linalg.solve(hessian, gradient), 1.0
        while objective(w - length * step) > objective(w) and length > 1e-6:
            length /= 2
        w = w - length * step
    return w[:-1], w[-1]
