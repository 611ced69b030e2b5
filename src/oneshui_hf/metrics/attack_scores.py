"""Scoring of membership inference attacks: AUC, TPR at a fixed FPR, and balanced accuracy of member and non-member scores.

A higher score always means "the model was trained on this photo". The ideal AUC is 0.5, and all rates are 0..1. A model that forgets too
much reveals a person just as a model that forgets too little does, so every attack is also scored in its best direction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ..errors import UsageError

FPRS = (0.1, 0.01, 0.001)
SPLITS = 20  # random calibration/evaluation splits of the people; the mean over them depends little on any one split

Groups = tuple[torch.Tensor, torch.Tensor]  # members and non-members


@dataclass(frozen=True, eq=False)
class AttackResult:
    """Scores of one attack and the metrics computed from them.

    Attributes:
        name: The attack.
        members: Scores of the members, float64 (n,); U-LiRA: (rounds, n).
        nonmembers: Scores of the non-members, (m,) or (rounds, m).
        auc: Probability that a member scores above a non-member, ties counting half. Above 0.5 members look trained on. Below 0.5 they look
            less trained on than unseen identities: they are forgotten too much.
        auc_best_direction: AUC of an attacker who may use either direction, without optimistic bias: the direction is chosen on half of the
            people and scored on the other half. Equals `auc` where the attack learns its direction. NaN where a side has one person.
        balanced_accuracy: At the best threshold (and direction), chosen on half of the people and scored on the other half; at the attack's
            own threshold where it has one. NaN as above.
        tpr: True positive rate at each false positive rate; None where there are too few non-members to resolve that rate. Computed in the
            attack's own direction, or in the opposite one where `sign` is -1.
        smallest_fpr: 1 / number of non-members, the smallest FPR that this sample resolves. Photos of one person are not independent, so
            a rate near it still depends on few people.
        sign: -1 where members score below non-members in every half of the people, else 1.
        direction: How to read the AUC.
    """

    name: str
    members: torch.Tensor
    nonmembers: torch.Tensor
    auc: float
    auc_best_direction: float
    balanced_accuracy: float
    tpr: dict[float, float | None]
    smallest_fpr: float
    sign: int = 1
    direction: str = "0.5 is ideal: the attacker cannot distinguish members from non-members"


def auc(members: torch.Tensor, nonmembers: torch.Tensor) -> float:
    """Return the probability that a member (n,) scores above a non-member (m,), ties counting half.

    NaN where a side is empty or has a NaN.
    """
    if not _are_scored(members, nonmembers):
        return math.nan
    ordered = nonmembers.sort().values
    members = members.contiguous()
    below, up_to = (torch.searchsorted(ordered, members, right=right) for right in (False, True))
    return int((below + up_to).sum()) / (2 * len(members) * len(nonmembers))


def roc_curve(members: torch.Tensor, nonmembers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ROC curve: FPR and TPR at or above each threshold, two float64 tensors (t + 1,).

    The curve runs from (0, 0), above every score, to (1, 1), with one point per distinct score. `auc` is the area under the straight lines
    between the points. Both tensors are empty where a side is empty or has a NaN.

    Args:
        members: Scores (n,).
        nonmembers: Scores (m,).
    """
    if not _are_scored(members, nonmembers):
        return torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.float64)
    scores, order = torch.cat([members, nonmembers]).sort(descending=True)
    is_member = order < len(members)
    is_last = torch.cat([scores[1:] != scores[:-1], torch.tensor([True])])
    fpr, tpr = (side.cumsum(0)[is_last].double() / side.sum() for side in (~is_member, is_member))
    start = torch.zeros(1, dtype=torch.float64)
    return torch.cat([start, fpr]), torch.cat([start, tpr])


def _are_scored(members: torch.Tensor, nonmembers: torch.Tensor) -> bool:
    """Return whether both sides have scores, and no score is NaN."""
    return bool(len(members) and len(nonmembers) and not members.isnan().any() and not nonmembers.isnan().any())


def tpr_at_fpr(members: torch.Tensor, nonmembers: torch.Tensor, fpr: float) -> float | None:
    """Return the highest true positive rate of a threshold whose false positive rate is at most `fpr`.

    None where `fpr` is less than one non-member, so that the sample does not resolve it. NaN without members or with a NaN.
    """
    allowed = math.floor(fpr * len(nonmembers) + 1e-9)
    if allowed < 1:
        return None
    if not _are_scored(members, nonmembers):
        return math.nan
    if allowed >= len(nonmembers):
        return 1.0
    threshold = nonmembers.sort(descending=True).values[allowed]
    return (members > threshold).double().mean().item()


def best_threshold(members: torch.Tensor, nonmembers: torch.Tensor) -> tuple[float, int]:
    """Return threshold and direction (1 where members score above it, else -1) of the highest balanced accuracy on these scores."""
    scores, order = torch.cat([members, nonmembers]).sort()
    sides = [torch.full((len(side),), sign / len(side), dtype=torch.float64) for side, sign in ((members, 1), (nonmembers, -1))]
    below = torch.cat(sides)[order].cumsum(0)  # share of members at or below, minus that of non-members
    is_last = torch.cat([scores[1:] != scores[:-1], torch.tensor([True])])
    best = int(torch.where(is_last, below.abs(), -1).argmax())
    upper = scores[best + 1] if best + 1 < len(scores) else scores[best]
    return ((scores[best] + upper) / 2).item(), 1 if below[best] <= 0 else -1


def strongest_attack(attacks: Iterable[AttackResult]) -> AttackResult:
    """Return the attack with the highest `auc_best_direction`, which tables report.

    The maximum of several chance results lies above 0.5, so compare it with the same number of an oracle. Where a side has one person and
    the direction cannot be chosen on held-out people, the distance of `auc` from 0.5 is used instead. A model with NaN scores
    ranks first, so that no other number hides the failure.

    Raises:
        UsageError: There is no attack.
    """

    def strength(attack: AttackResult) -> float:
        if math.isnan(attack.auc):
            return math.inf
        return max(attack.auc, 1 - attack.auc) if math.isnan(attack.auc_best_direction) else attack.auc_best_direction

    attacks = list(attacks)
    if not attacks:
        raise UsageError("There is no attack to choose the strongest from.")
    return max(attacks, key=strength)


def score_attack(
    name: str,
    members: torch.Tensor,
    nonmembers: torch.Tensor,
    identities: Groups,
    generator: torch.Generator,
    fprs: Sequence[float] = FPRS,
) -> AttackResult:
    """Return the metrics of an attacker who calibrates direction and threshold on half of the people.

    Each of `SPLITS` random splits halves the people. Direction and threshold are chosen on one half and scored on the other, and vice
    versa. Where members and non-members are indistinguishable the expected AUC and balanced accuracy are therefore 0.5, not more.

    Args:
        name: The attack.
        members: Scores (n,), higher for "was trained on".
        nonmembers: Scores (m,).
        identities: The person on each photo, (n,) and (m,).
        generator: Draws the splits.
        fprs: False positive rates at which the TPR is reported.

    Raises:
        UsageError: The number of identities differs from the number of scores.
    """
    if any(len(ids) != len(side) for ids, side in zip(identities, (members, nonmembers), strict=True)):
        raise UsageError("An attack needs the identity of every member and of every non-member.")
    has_one_person = any(len(ids.unique()) < 2 for ids in identities)
    if has_one_person or members.isnan().any() or nonmembers.isnan().any():
        return attack_metrics(name, members, nonmembers, fprs, auc_best_direction=math.nan, balanced_accuracy=math.nan)
    signs, aucs, accuracies = [], [], []
    for calibration, held_out in _calibration_splits(members, nonmembers, identities, generator):
        excess = auc(*calibration) - 0.5
        signs.append(math.copysign(1, excess) if excess else 0.0)
        aucs.append(0.5 + signs[-1] * (auc(*held_out) - 0.5))
        accuracies.append(balanced_accuracy_at(*held_out, *best_threshold(*calibration)))
    return attack_metrics(
        name,
        members,
        nonmembers,
        fprs,
        auc_best_direction=sum(aucs) / len(aucs),
        balanced_accuracy=sum(accuracies) / len(accuracies),
        sign=-1 if max(signs) < 0 else 1,
    )


def _calibration_splits(
    members: torch.Tensor, nonmembers: torch.Tensor, identities: Groups, generator: torch.Generator
) -> Iterator[tuple[Groups, Groups]]:
    """Yield (calibration, held out), each (members, non-members), for both roles of both halves of the people."""
    for _ in range(SPLITS):
        first, second = (assign_folds(ids, 2, generator) == 0 for ids in identities)
        halves = (members[first], nonmembers[second]), (members[~first], nonmembers[~second])
        yield halves
        yield halves[1], halves[0]


def assign_folds(identities: torch.Tensor, folds: int, generator: torch.Generator) -> torch.Tensor:
    """Return the fold of each photo (n,). All photos of a person are in one fold; shuffled people are assigned to the folds in turn."""
    people, person_index = identities.unique(return_inverse=True)
    return (torch.randperm(len(people), generator=generator) % folds)[person_index]


def balanced_accuracy_at(members: torch.Tensor, nonmembers: torch.Tensor, threshold: float, sign: int) -> float:
    """Return the mean share of members and of non-members on the right side of a threshold; scores equal to it count half."""
    sides = [((sign * (side - threshold)).sign().mean() + 1) / 2 for side in (members, nonmembers)]
    return ((sides[0] + 1 - sides[1]) / 2).item()


def attack_metrics(
    name: str,
    members: torch.Tensor,
    nonmembers: torch.Tensor,
    fprs: Sequence[float],
    balanced_accuracy: float,
    auc_best_direction: float | None = None,
    sign: int = 1,
) -> AttackResult:
    """Return AUC and TPRs of scores whose balanced accuracy (and AUC in the best direction) is already computed.

    Args:
        name: The attack.
        members: Scores (n,) or (rounds, n); AUC and TPRs are means over rounds.
        nonmembers: Scores (m,) or (rounds, m).
        fprs: False positive rates at which the TPR is reported.
        balanced_accuracy: See `AttackResult`.
        auc_best_direction: See `AttackResult`; by default the AUC, for an attack that learns its direction.
        sign: See `AttackResult`.
    """
    rounds = list(zip(torch.atleast_2d(members), torch.atleast_2d(nonmembers), strict=True))
    value = sum(auc(*scores) for scores in rounds) / len(rounds)
    tpr: dict[float, float | None] = {}
    for fpr in fprs:
        rates = [rate for m, n in rounds if (rate := tpr_at_fpr(sign * m, sign * n, fpr)) is not None]
        tpr[fpr] = sum(rates) / len(rates) if rates else None
    return AttackResult(
        name=name,
        members=members,
        nonmembers=nonmembers,
        auc=value,
        auc_best_direction=value if auc_best_direction is None else auc_best_direction,
        balanced_accuracy=balanced_accuracy,
        tpr=tpr,
        smallest_fpr=1 / nonmembers.shape[-1] if nonmembers.shape[-1] else math.inf,
        sign=sign,
    )
