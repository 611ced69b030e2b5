"""The difference attack on outputs, against the definition in float64, and on models with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from oneshui_hf.data.schema import TaskKind
from oneshui_hf.errors import UsageError
from oneshui_hf.metrics.attack_scores import auc
from oneshui_hf.metrics.attacks import output_difference
from oneshui_hf.metrics.intervals import auc_interval
from support.attack_data import labels_of, normal, rng, two_groups

KINDS: tuple[TaskKind, ...] = ("multi_label", "single_label")


@pytest.mark.parametrize("kind", KINDS)
def test_scores_match_their_definition(kind: TaskKind) -> None:
    generator = rng(0)
    labels = labels_of(kind, 30, 5, generator)
    after, before = (normal(generator, 30, 5) for _ in range(2))
    found = output_difference(after.float(), before.float(), labels, kind)

    def loss(logits: np.ndarray) -> np.ndarray:
        if kind == "multi_label":
            signs = 2 * labels.numpy().astype(np.float64) - 1
            return np.logaddexp(0, -signs * logits).mean(axis=1)
        shifted = logits - logits.max(axis=1, keepdims=True)
        return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(30), labels.numpy()]

    a, b = (logits.float().double().numpy() for logits in (after, before))
    assert found.loss_rise.dtype == found.logit_distance.dtype == torch.float64
    assert np.allclose(found.loss_rise.numpy(), loss(a) - loss(b), atol=1e-12)
    assert np.allclose(found.logit_distance.numpy(), np.sqrt(((a - b) ** 2).sum(axis=1)), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_models_have_no_difference(kind: TaskKind) -> None:
    logits = normal(rng(0), 6, 4)
    found = output_difference(logits, logits, labels_of(kind, 6, 4, rng(1)), kind)
    assert not found.loss_rise.any()
    assert not found.logit_distance.any()


@pytest.mark.parametrize("kind", KINDS)
def test_differences_that_do_not_depend_on_the_person_are_chance_and_a_planted_leak_is_found(kind: TaskKind) -> None:
    generator = rng(3)
    ids = two_groups((12, 30), 8)
    labels = [labels_of(kind, len(side), 6, generator) for side in ids]
    before = [normal(generator, len(side), 6) for side in ids]
    noise = [normal(generator, len(side), 6) / 4 for side in ids]
    plain = [output_difference(b + e, b, y, kind) for b, e, y in zip(before, noise, labels, strict=True)]
    leak = output_difference(-4 * before[0], before[0], labels[0], kind)
    towards = 2 * labels[0] - 1 if kind == "multi_label" else torch.nn.functional.one_hot(labels[0], 6)
    over = output_difference(before[0] - 2 * towards, before[0], labels[0], kind)  # the true labels become unlikely
    for name in ("loss_rise", "logit_distance"):
        interval = auc_interval(getattr(plain[0], name), getattr(plain[1], name), ids)
        assert interval.low < 0.5 < interval.high, name
    assert auc(leak.logit_distance, plain[1].logit_distance) > 0.95
    assert auc(over.loss_rise, plain[1].loss_rise) > 0.95


def test_logits_of_other_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\(4, 3\) and \(4, 2\)"):
        output_difference(torch.zeros(4, 3), torch.zeros(4, 2), torch.zeros(4, 3), "multi_label")
