"""The loss attack: the score of a photo is its negative loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..attack_scores import FPRS, AttackResult, Groups, score_attack


def loss_attack(
    members: torch.Tensor, nonmembers: torch.Tensor, identities: Groups, generator: torch.Generator, fprs: Sequence[float] = FPRS
) -> AttackResult:
    """Attack by the loss alone (Yeom et al. 2018).

    Use `auc_best_direction`: a loss far above that of unseen identities reveals a photo just as a loss far below does.

    Args:
        members: Losses of the members (n,).
        nonmembers: Losses of the non-members (m,).
        identities: The person on each photo, (n,) and (m,).
        generator: Draws the halves of the people.
        fprs: False positive rates at which the TPR is reported.
    """
    return score_attack("loss", -members.double(), -nonmembers.double(), identities, generator, fprs)
