"""The difference attack on outputs: which photos does the unlearned model answer differently than the original?"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...data.schema import TaskKind
from ...errors import UsageError
from ...models.outputs import losses


@dataclass(frozen=True, eq=False)
class OutputDifference:
    """How the outputs for some photos changed. In both scores, higher means "more likely forgotten".

    Attributes:
        loss_rise: Loss under the unlearned model minus loss under the original, float64 (n,). Needs the true labels.
        logit_distance: Euclidean distance of the logits of the two models, float64 (n,). Needs no labels.
    """

    loss_rise: torch.Tensor
    logit_distance: torch.Tensor


def output_difference(model_logits: torch.Tensor, original_logits: torch.Tensor, labels: torch.Tensor, kind: TaskKind) -> OutputDifference:
    """Return the scores of an attacker who holds the original and the unlearned model, and photos of candidates.

    The comparison of the outputs before and after a deletion is the attack of Chen et al., "When Machine Unlearning Jeopardizes Privacy",
    CCS 2021, here with two fixed scores instead of a trained classifier. An exact retraining changes the outputs for the forgotten photos,
    too, so no score of a model means anything without that of an oracle. The attack cannot show why an output changed: another training
    order changes all of them.

    Args:
        model_logits: Of the unlearned model, (n, K).
        original_logits: Of the original, for the same photos, (n, K).
        labels: (n, K) of 0/1, or classes (n,).
        kind: Which of the two.

    Raises:
        UsageError: The models have logits of different shapes.
    """
    if model_logits.shape != original_logits.shape:
        shapes = f"{tuple(model_logits.shape)} and {tuple(original_logits.shape)}"
        raise UsageError(f"The difference of two models needs their logits for the same photos and labels; their shapes are {shapes}.")
    after, before = model_logits.double(), original_logits.double()
    truth = labels.double() if kind == "multi_label" else labels
    return OutputDifference(losses(after, truth, kind) - losses(before, truth, kind), (after - before).norm(dim=1))
