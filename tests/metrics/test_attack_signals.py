"""Label probabilities, scaled logits and confidences against their definitions."""

from __future__ import annotations

import pytest
import torch

from oneshui_hf.data.schema import TaskKind
from oneshui_hf.metrics.attack_signals import confidence_features, label_log_probabilities, scaled_logits
from support.attack_data import labels_of, normal, rng

KINDS: tuple[TaskKind, ...] = ("multi_label", "single_label")


@pytest.mark.parametrize("kind", KINDS)
def test_signals_are_the_label_probability_and_its_logit(kind: TaskKind) -> None:
    logits, labels = normal(rng(0), 2, 6, 4), labels_of(kind, 6, 4, rng(1))
    if kind == "multi_label":
        p = logits.sigmoid()
        p = torch.where(labels == 1, p, 1 - p)
    else:
        p = torch.stack([logits.softmax(-1)[:, i, labels[i]] for i in range(6)], 1).unsqueeze(-1)
    torch.testing.assert_close(label_log_probabilities(logits, labels, kind), p.log())
    torch.testing.assert_close(scaled_logits(logits, labels, kind), p.log() - (1 - p).log())
    assert label_log_probabilities(logits[0].float(), labels, kind).shape == p.shape[1:]


def test_signals_of_confident_models_are_finite() -> None:
    """The probability 1 - 1e-30 rounds to 1, whose logit is infinite."""
    logits = torch.tensor([[70.0, -70.0]])
    assert scaled_logits(logits, torch.tensor([[1.0, 1.0]]), "multi_label").tolist() == [[70.0, -70.0]]
    assert scaled_logits(logits, torch.tensor([0]), "single_label").tolist() == [[140.0]]
    assert label_log_probabilities(logits, torch.tensor([[0.0, 1.0]]), "multi_label").tolist() == [[-70.0, -70.0]]


def test_confidence_is_the_margin_and_needs_no_label() -> None:
    logits, loss = torch.tensor([[1.0, 4.0, 3.5], [-2.0, 0.0, 5.0]]), torch.tensor([0.25, 0.5])
    assert confidence_features(logits, loss, "single_label").tolist() == [[0.25, 0.5], [0.5, 5.0]]
    torch.testing.assert_close(
        confidence_features(logits, loss, "multi_label"),
        torch.tensor([[0.25, 8.5 / 3], [0.5, 7 / 3]], dtype=torch.float64),
        rtol=0,
        atol=1e-12,
    )
