"""All attacks together, from logits to the strongest attack."""

from __future__ import annotations

import pytest
import torch

from oneshui_hf.data.schema import TaskKind
from oneshui_hf.metrics.attack_scores import strongest_attack
from oneshui_hf.metrics.attack_signals import Signals, confidence_features, label_log_probabilities
from oneshui_hf.metrics.attacks import logistic_attack, loss_attack, rmia
from oneshui_hf.models.outputs import losses
from support.attack_data import face_signals, labels_of, rng, two_groups

KINDS: tuple[TaskKind, ...] = ("multi_label", "single_label")


@pytest.mark.parametrize("kind", KINDS)
def test_all_attacks_detect_a_model_that_did_not_forget(kind: TaskKind) -> None:
    """All attacks detect a model that was trained on the forget identities, for both kinds of task."""
    generator = rng(0)
    ids = two_groups()
    result, logits, labels = [], [], []
    for side, sharp in zip(ids, (4.0, 1.0), strict=True):
        truth = labels_of(kind, len(side), 6, generator)
        towards = 2 * truth - 1 if kind == "multi_label" else torch.nn.functional.one_hot(truth, 6).float()
        logits.append(sharp * towards + torch.randn(len(side), 6, generator=generator))
        labels.append(truth)
    loss = [losses(x, y, kind) for x, y in zip(logits, labels, strict=True)]
    result.append(loss_attack(loss[0], loss[1], ids, generator))
    features = [confidence_features(x, y, kind) for x, y in zip(logits, loss, strict=True)]
    result.append(logistic_attack(features[0], features[1], ids, generator))
    towards = [torch.zeros_like(x) for x in logits]
    both = [
        Signals(label_log_probabilities(x, y, kind), label_log_probabilities(o.unsqueeze(0), y, kind))
        for x, y, o in zip(logits, labels, towards, strict=True)
    ]
    population = face_signals(generator, torch.arange(300), 6 if kind == "multi_label" else 1, references=1)
    result.append(rmia(both[0], both[1], population, ids, generator))
    assert [attack.name for attack in result] == ["loss", "logistic", "rmia"]
    assert all(attack.auc > 0.8 for attack in result)
    assert strongest_attack(result).auc_best_direction == max(attack.auc_best_direction for attack in result)
