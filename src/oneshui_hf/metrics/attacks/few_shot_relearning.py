"""Few-shot relearning: does one photo of a person bring back what the model knew about the person's other photos?

The attacker has the unlearned model and one photo, the support image, and trains a copy of the model on that photo alone. The other photos,
on which the original was trained, are never used for it; their loss is measured before, and after 1, 2, 5, 10 and 20 steps at each of
three learning rates. The attacker is given the best of these settings for each model: one photo is soon memorised, and the loss of the
others rises again. If it falls back towards the original's, the weights still contained what was learned from them, and unlearning only
hid it.

Direction: a recovery of 0 is no effect, 1 is the original's loss. The oracle's recovery is the ideal value, since training on one photo
of a person improves the others in any case: they have many labels in common. A recovery above the oracle's shows remaining knowledge.

What it cannot show: a recovery that is not above the oracle's does not prove forgetting. Another optimiser, more steps or more photos
may recover more; and a model that was moved far away, to a high loss, recovers a large share of a large gap within few steps.

Source: the relearning attack of Hu, Fu, Wu, Smith, "Unlearning or Obfuscating? Jogging the Memory of Unlearned LLMs via Benign Relearning",
ICLR 2025 (2406.13356), with the support image as the attacker's data.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ...data.schema import TaskKind
from ...models.outputs import losses
from ...seeding import generator
from ..comparison import Predictions, Settings
from ..functional import identity_losses, score_of
from ..intervals import bootstrap, interval_ends

STEPS = (1, 2, 5, 10, 20)
RATES = (1e-6, 1e-5, 1e-4)  # a pretrained network is overfitted by one step at the last, which others need
MIN_GAP = 0.1  # of the original's loss; a model nearer to the original has nothing to recover


def logits_after_fine_tuning(
    model: nn.Module,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    others: Sequence[torch.Tensor],
    kind: TaskKind,
    lr: float,
    steps: Sequence[int] = STEPS,
) -> torch.Tensor:
    """Train a copy of a model on some photos, and return its logits for others after some steps, float32 (s, m, K) on the CPU.

    All parameters are trained by AdamW without weight decay, at a constant rate, each step on all of the photos. The copy is in evaluation
    mode throughout, since batch statistics of one photo are none; without dropout nothing is random. The model itself does not change.

    Args:
        model: Any image classifier.
        pixels: The attacker's photos, preprocessed, on the model's device (n, 3, S, S).
        labels: Their labels.
        others: Batches of the photos to predict, preprocessed.
        kind: What the labels are.
        lr: The learning rate.
        steps: Numbers of training steps after which the others are predicted, in increasing order.
    """
    student = copy.deepcopy(model).requires_grad_(True).eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.0)
    predicted = []
    for step in range(1, steps[-1] + 1):
        losses(student(pixel_values=pixels).logits.float(), labels, kind).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in steps:
            with torch.no_grad():
                predicted.append(torch.cat([student(pixel_values=batch).logits.float().cpu() for batch in others]))
    return torch.stack(predicted)


def best_for_attacker(before: Predictions, after: torch.Tensor, kind: TaskKind) -> int:
    """Return the index of the setting with the lowest loss of the other photos, as a mean over people.

    Args:
        before: Predictions of the attacked model for these photos.
        after: Logits after training with each setting (s, n, K).
        kind: What they are.
    """
    means = [_by_person(losses(logits, before.labels, kind), before.identities).mean() for logits in after]
    return int(torch.stack(means).argmin())


def relearning_entry(
    before: Predictions, after: torch.Tensor, original: torch.Tensor, kind: TaskKind, settings: Settings
) -> dict[str, Any]:
    """Return how much of the gap to the original's loss comes back. Each person counts once, with the mean loss of the photos.

    Args:
        before: Predictions of the attacked model for the photos that the attacker lacks.
        after: Its logits after training, each photo's by the copy that was trained on its person (n, K).
        original: The original's loss of each photo (n,).
        kind: What the model predicts.
        settings: Of the interval.

    Returns:
        `loss_before`, `loss_after`, `score_before`, `score_after` (percent), `recovery`, the share of the gap that comes back (None where
        the gap is at most `MIN_GAP` of the original's loss), and `interval` over people (None as well where that of the gap contains 0).
    """
    falls, gaps = (
        _by_person(of, before.identities) for of in (before.losses - losses(after, before.labels, kind), before.losses - original)
    )
    people = torch.arange(len(gaps))
    has_gap = bool(gaps.sum() > MIN_GAP * _by_person(original, before.identities).sum())

    def recovery(positions: torch.Tensor) -> float:
        return (falls[positions].sum() / gaps[positions].sum()).item()

    rng = [generator(settings.seed, "few-shot relearning", what) for what in ("gap", "recovery")]
    gap = interval_ends(bootstrap(gaps, people, settings.resamples, rng[0], settings.level))
    has_interval = has_gap and gap is not None and gap[0] > 0
    interval = bootstrap(recovery, people, settings.resamples, rng[1], settings.level) if has_interval else None
    loss = _by_person(before.losses, before.identities).mean()
    return {
        "loss_before": loss.item(),
        "loss_after": (loss - falls.mean()).item(),
        "score_before": before.score(kind),
        "score_after": score_of(after, before.labels, kind),
        "recovery": recovery(people) if has_gap else None,
        "interval": interval and interval_ends(interval),
    }


def excess_entry(
    before: Predictions, after: torch.Tensor, oracle_before: Predictions, oracle_after: torch.Tensor, kind: TaskKind, settings: Settings
) -> dict[str, Any]:
    """Return how much more the loss falls than the oracle's, as a mean over people, and its interval. 0 is ideal, above 0 is a leak."""
    falls = [of.losses - losses(logits, of.labels, kind) for of, logits in ((before, after), (oracle_before, oracle_after))]
    excess = _by_person(falls[0] - falls[1], before.identities)
    rng = generator(settings.seed, "few-shot relearning", "excess")
    interval = bootstrap(excess, torch.arange(len(excess)), settings.resamples, rng, settings.level)
    return {"value": interval.value, "interval": interval_ends(interval)}


def _by_person(values: torch.Tensor, identities: torch.Tensor) -> torch.Tensor:
    """Return the mean of each person's photos, float64 (P,)."""
    return identity_losses(values, identities)[1]
