"""Data of the figures: losses of each forget identity, loss histograms, ROC curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..sets import ATTACKED
from .attack_scores import AttackResult, roc_curve
from .comparison import Comparison, PredictionsBySet
from .functional import identity_losses

BINS = 24  # of the loss histograms
MAX_POINTS = 512  # of a curve


def curves(compared: Comparison, attacks: Sequence[AttackResult]) -> dict[str, Any]:
    """Return the content of `curves.json`.

    Args:
        compared: Predictions of the models.
        attacks: Results of the attacks on the model.
    """
    models = {"original": compared.original, "model": compared.model, "oracle": compared.oracle}
    losses = {which: identity_losses(of["forget"].losses, of["forget"].identities)[1].tolist() for which, of in models.items() if of}
    people = [{which: losses[which][i] if which in losses else None for which in models} for i in range(len(losses["model"]))]
    people.sort(key=lambda person: next(loss for loss in person.values() if loss is not None))
    shown = [of[name].losses for of in (compared.original, compared.model) if of for name in ATTACKED]
    top = max(torch.cat(shown).nan_to_num(0, 0, 0).double().quantile(0.99).item(), 1e-6)
    return {
        "people": people,
        "losses": {
            "edges": [top * i / BINS for i in range(BINS + 1)],
            "before": _histograms(compared.original, top) if compared.original else None,
            "after": _histograms(compared.model, top),
        },
        "roc": {attack.name: _roc_entry(attack) for attack in attacks if attack.members.dim() == 1 and not math.isnan(attack.auc)},
    }


def _histograms(predictions: PredictionsBySet, top: float) -> dict[str, list[int]]:
    """Return the loss histogram of each attacked set; the last bin includes all larger losses."""
    return {name: torch.histc(predictions[name].losses.nan_to_num(top).clamp(0, top), BINS, 0, top).int().tolist() for name in ATTACKED}


def _roc_entry(attack: AttackResult) -> dict[str, Any]:
    fpr, tpr = roc_curve(attack.sign * attack.members, attack.sign * attack.nonmembers)
    shown = torch.linspace(0, len(fpr) - 1, min(MAX_POINTS, len(fpr))).round().long().unique()
    return {
        "fpr": fpr[shown].tolist(),
        "tpr": tpr[shown].tolist(),
        "smallest_fpr": attack.smallest_fpr,
        "members": len(attack.members),
        "nonmembers": len(attack.nonmembers),
    }
