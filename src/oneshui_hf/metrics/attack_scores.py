"""What an attacker achieves with the scores of members and of non-members.

Everywhere a higher score means "the model was trained on this", 0.5 is the ideal AUC, and all shares are 0..1. A model that forgets too
much betrays a person as surely as one that forgets too little, so every attack also says what an attacker achieves who may guess in either
direction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ..errors import UsageError

FPRS = (0.1, 0.01, 0.001)
HALVINGS = 20  # of the people, at random: one halving's luck does not decide

Groups = tuple[torch.Tensor, torch.Tensor]  # of members and of non-members


@dataclass(frozen=True, eq=False)
class Attack:
    """What one attacker achieves.

    Attributes:
        name: The attack.
        members: Scores of the members, float64 (n,); U-LiRA: (rounds, n).
        nonmembers: Scores of the non-members, (m,) or (rounds, m).
        auc: Probability that a member scores above a non-member, ties counting half. Above 0.5 members look trained on, below 0.5 they look
            stranger than strangers: forgotten too much.
        auc_either_way: The AUC of an attacker who may guess either direction, without optimism: the direction is chosen on half of the
            people and scored on the other half. `auc` itself where the attack learns its direction. NaN where a side has one person.
        balanced_accuracy: At the best threshold (and direction), chosen on half of the people and scored on the other half; at the attack's
            own threshold where it has one. NaN as above.
        tpr: Share of members caught, by the share of non-members wrongly accused; None where there are too few non-members to tell. In the
            attack's own direction, or in the other one where `sign` is -1.
        smallest_fpr: 1 / number of non-members, the smallest share that this sample resolves (photos of one person are not independent, so
            a share near it still rests on few people).
        sign: -1 where every half of the people says that members score below non-members, else 1.
        direction: How to read it.
    """

    name: str
    members: torch.Tensor
    nonmembers: torch.Tensor
    auc: float
    auc_either_way: float
    balanced_accuracy: float
    tpr: dict[float, float | None]
    smallest_fpr: float
    sign: int = 1
    direction: str = "0.5 is ideal: the attacker cannot tell"


def auc(members: torch.Tensor, nonmembers: torch.Tensor) -> float:
    """Return the probability that a member (n,) scores above a non-member (m,), ties counting half; NaN without either or with a NaN."""
    if not len(members) or not len(nonmembers) or members.isnan().any() or nonmembers.isnan().any():
        return math.nan
    ordered = nonmembers.sort().values
    members = members.contiguous()
    below, upto = (torch.searchsorted(ordered, members, right=right) for right in (False, True))
    return int((below + upto).sum()) / (2 * len(members) * len(nonmembers))


def roc(members: torch.Tensor, nonmembers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ROC curve: shares of non-members and of members at or above each threshold, two float64 tensors (t + 1,).

    From (0, 0), above every score, to (1, 1), one point for each distinct score; `auc` is the area under the straight lines between them.
    Two empty tensors where it is not known: without either, or with a NaN.

    Args:
        members: Scores (n,).
        nonmembers: Scores (m,).
    """
    if not len(members) or not len(nonmembers) or members.isnan().any() or nonmembers.isnan().any():
        return torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.float64)
    scores, order = torch.cat([members, nonmembers]).sort(descending=True)
    member = order < len(members)
    last = torch.cat([scores[1:] != scores[:-1], torch.tensor([True])])
    fpr, tpr = (side.cumsum(0)[last].double() / side.sum() for side in (~member, member))
    start = torch.zeros(1, dtype=torch.float64)
    return torch.cat([start, fpr]), torch.cat([start, tpr])


def tpr_at_fpr(members: torch.Tensor, nonmembers: torch.Tensor, fpr: float) -> float | None:
    """Return the largest share of members above a threshold that at most this share of non-members is above.

    None where not even one non-member is that share, so that the sample cannot tell; NaN with a NaN or without members.
    """
    allowed = math.floor(fpr * len(nonmembers) + 1e-9)
    if allowed < 1:
        return None
    if not len(members) or members.isnan().any() or nonmembers.isnan().any():
        return math.nan
    if allowed >= len(nonmembers):
        return 1.0
    threshold = nonmembers.sort(descending=True).values[allowed]
    return (members > threshold).double().mean().item()


def best_threshold(members: torch.Tensor, nonmembers: torch.Tensor) -> tuple[float, int]:
    """Return threshold and direction (1 where members lie above it, else -1) of the highest balanced accuracy on these scores."""
    scores, order = torch.cat([members, nonmembers]).sort()
    sides = [torch.full((len(side),), sign / len(side), dtype=torch.float64) for side, sign in ((members, 1), (nonmembers, -1))]
    below = torch.cat(sides)[order].cumsum(0)  # share of members at or below less that of non-members
    ends = torch.cat([scores[1:] != scores[:-1], torch.tensor([True])])
    at = int(torch.where(ends, below.abs(), -1).argmax())
    upper = scores[at + 1] if at + 1 < len(scores) else scores[at]
    return ((scores[at] + upper) / 2).item(), 1 if below[at] <= 0 else -1


def strongest(attacks: Iterable[Attack]) -> Attack:
    """Return the attack with the highest `auc_either_way`; what a table reports.

    The highest of several chance results lies above 0.5, so read it beside the same number of an oracle. Where a side has one person and
    no direction can be chosen fairly, the distance of `auc` from 0.5 stands in. A model whose scores are NaN comes first: nothing
    is known of it, and no other number may hide that.

    Raises:
        UsageError: There is none.
    """

    def strength(attack: Attack) -> float:
        if math.isnan(attack.auc):
            return math.inf
        return max(attack.auc, 1 - attack.auc) if math.isnan(attack.auc_either_way) else attack.auc_either_way

    attacks = list(attacks)
    if not attacks:
        raise UsageError("There is no attack to choose the strongest from.")
    return max(attacks, key=strength)


def judge(
    name: str,
    members: torch.Tensor,
    nonmembers: torch.Tensor,
    identities: Groups,
    generator: torch.Generator,
    fprs: Sequence[float] = FPRS,
) -> Attack:
    """Return what an attacker achieves with these scores, who may calibrate on half of the people.

    In each of some random halvings, direction and threshold are chosen on one half and scored on the other, and the other way round. Where
    members cannot be told from non-members the expected AUC and balanced accuracy are therefore 0.5, not more.

    Args:
        name: The attack.
        members: Scores (n,), higher for "was trained on".
        nonmembers: Scores (m,).
        identities: The person of each, (n,) and (m,).
        generator: Decides the halves.
        fprs: Where to read the share of members caught.
    """
    if any(len(ids) != len(side) for ids, side in zip(identities, (members, nonmembers), strict=True)):
        raise UsageError("An attack needs the identity of every member and of every non-member.")
    few = any(len(ids.unique()) < 2 for ids in identities)
    if few or members.isnan().any() or nonmembers.isnan().any():
        return outcome(name, members, nonmembers, fprs, either_way=math.nan, balanced_accuracy=math.nan)
    signs, aucs, accuracies = [], [], []
    for calibration, held_out in _halvings(members, nonmembers, identities, generator):
        lean = auc(*calibration) - 0.5
        signs.append(math.copysign(1, lean) if lean else 0.0)
        aucs.append(0.5 + signs[-1] * (auc(*held_out) - 0.5))
        accuracies.append(balanced_share(*held_out, *best_threshold(*calibration)))
    return outcome(
        name,
        members,
        nonmembers,
        fprs,
        either_way=sum(aucs) / len(aucs),
        balanced_accuracy=sum(accuracies) / len(accuracies),
        sign=-1 if max(signs) < 0 else 1,
    )


def _halvings(
    members: torch.Tensor, nonmembers: torch.Tensor, identities: Groups, generator: torch.Generator
) -> Iterator[tuple[Groups, Groups]]:
    """Yield (calibration, held out), each (members, non-members), for both roles of both halves of the people."""
    for _ in range(HALVINGS):
        first, second = (deal_people(ids, 2, generator) == 0 for ids in identities)
        halves = (members[first], nonmembers[second]), (members[~first], nonmembers[~second])
        yield halves
        yield halves[1], halves[0]


def deal_people(identities: torch.Tensor, folds: int, generator: torch.Generator) -> torch.Tensor:
    """Return the fold of each photo (n,): people are shuffled and dealt out in turn."""
    people, owner = identities.unique(return_inverse=True)
    return (torch.randperm(len(people), generator=generator) % folds)[owner]


def balanced_share(members: torch.Tensor, nonmembers: torch.Tensor, threshold: float, sign: int) -> float:
    """Return the mean share of members and non-members on their side of a threshold; on the threshold itself, half of them."""
    sides = [((sign * (side - threshold)).sign().mean() + 1) / 2 for side in (members, nonmembers)]
    return ((sides[0] + 1 - sides[1]) / 2).item()


def outcome(
    name: str,
    members: torch.Tensor,
    nonmembers: torch.Tensor,
    fprs: Sequence[float],
    balanced_accuracy: float,
    either_way: float | None = None,
    sign: int = 1,
) -> Attack:
    """Return what is read off scores whose accuracy (and AUC in either direction) is known already.

    Args:
        name: The attack.
        members: Scores (n,) or (rounds, n); AUC and shares are means over rounds.
        nonmembers: Scores (m,) or (rounds, m).
        fprs: Where to read the share of members caught.
        balanced_accuracy: See `Attack`.
        either_way: The `auc_either_way`; the AUC by default, for an attack that learns its direction.
        sign: See `Attack`.
    """
    rounds = list(zip(torch.atleast_2d(members), torch.atleast_2d(nonmembers), strict=True))
    value = sum(auc(*scores) for scores in rounds) / len(rounds)
    caught: dict[float, float | None] = {}
    for fpr in fprs:
        shares = [share for m, n in rounds if (share := tpr_at_fpr(sign * m, sign * n, fpr)) is not None]
        caught[fpr] = sum(shares) / len(shares) if shares else None
    return Attack(
        name=name,
        members=members,
        nonmembers=nonmembers,
        auc=value,
        auc_either_way=value if either_way is None else either_way,
        balanced_accuracy=balanced_accuracy,
        tpr=caught,
        smallest_fpr=1 / nonmembers.shape[-1] if nonmembers.shape[-1] else math.inf,
        sign=sign,
    )
