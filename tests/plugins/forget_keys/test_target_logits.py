"""Target logits: distributions are matched exactly, ranks are kept, and average precision agrees with scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

from oneshui_hf.methods import TaskKind
from oneshui_plugins.forget_keys.target_logits import LabelledLogits, map_quantiles, margin, match_quantiles

HALF = torch.tensor(0.5)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_attributes(count: int, seed: int) -> torch.Tensor:
    return (noise(count, 3, seed=seed) > 0).double()


def test_values_are_replaced_one_by_one_by_a_sample_of_equal_size() -> None:
    values, sample = noise(50), 3 * noise(50, seed=1) + 2
    mapped = map_quantiles(values, sample, HALF)
    torch.testing.assert_close(mapped.sort().values, sample.sort().values)
    assert torch.equal(mapped.argsort(), values.argsort())


@pytest.mark.parametrize("size", [1, 7, 400])
def test_quantiles_are_those_of_numpy(size: int) -> None:
    values, sample = noise(9), noise(size, seed=1)
    places = (values.argsort().argsort().numpy() + 0.5) / 9
    expected = np.quantile(sample.numpy(), places, method="hazen")
    np.testing.assert_allclose(map_quantiles(values, sample, HALF), expected, atol=1e-12)


@pytest.mark.parametrize("photos", [1, 3])
def test_random_u_covers_the_whole_distribution_for_few_photos(photos: int) -> None:
    sample, rng = noise(500).exp(), torch.Generator().manual_seed(1)  # skewed: its mean is not its median
    values = noise(photos, seed=2)
    mapped = torch.cat([map_quantiles(values, sample, torch.rand(photos, generator=rng)) for _ in range(4000)])
    assert abs(mapped.mean() - sample.mean()) < 0.12
    assert abs(mapped.quantile(0.95) - sample.quantile(0.95)) < 0.4
    middle = map_quantiles(values, sample, HALF)
    assert middle.mean() < 0.9 * sample.mean()


def test_sample_of_the_same_distribution_changes_values_little() -> None:
    values = noise(4000)
    assert (map_quantiles(values, noise(4000, seed=1), HALF) - values).abs().mean() < 0.05


def test_every_attribute_and_value_gets_the_reference_distribution() -> None:
    labels, reference_labels = random_attributes(400, 2), random_attributes(300, 3)
    logits, reference = 8 * (2 * labels - 1) + noise(400, 3), noise(300, 3, seed=1) + reference_labels - 0.5
    matched = match_quantiles(
        LabelledLogits(logits, labels), LabelledLogits(reference, reference_labels), logits, HALF.expand(logits.shape), "multi_label"
    )
    for k in range(3):
        for value in (0, 1):
            actual, expected = matched[labels[:, k] == value, k], reference[reference_labels[:, k] == value, k]
            for quantile in (0.1, 0.5, 0.9):
                assert abs(actual.quantile(quantile) - expected.quantile(quantile)) < 0.1
        before = average_precision_score(labels[:, k], logits[:, k])
        after, level = (average_precision_score(y[:, k], z[:, k]) for y, z in ((labels, matched), (reference_labels, reference)))
        assert before == 1
        assert abs(after - level) < 0.06  # the fraction of positives differs, too


def test_value_without_reference_photos_keeps_its_logits() -> None:
    labels, reference_labels = torch.ones(6, 1).double(), torch.zeros(5, 1).double()
    logits = noise(6, 1)
    reference = LabelledLogits(noise(5, 1, seed=1), reference_labels)
    matched = match_quantiles(LabelledLogits(logits, labels), reference, logits, HALF.expand(6, 1), "multi_label")
    assert torch.equal(matched, logits)


def test_true_class_gets_its_target_probability_and_the_others_keep_their_proportions() -> None:
    labels, reference_labels = torch.arange(12) % 3, torch.arange(9) % 3
    logits, reference = noise(12, 4) + 9 * F.one_hot(labels, 4), noise(9, 4, seed=1)
    source = LabelledLogits(logits, labels)
    matched = match_quantiles(
        source, LabelledLogits(reference, reference_labels), margin(source, "single_label"), HALF.expand(12), "single_label"
    )
    before, after = logits.softmax(1), matched.softmax(1)
    torch.testing.assert_close(matched.exp().sum(1), torch.ones(12).double())  # they are log-probabilities
    for value in range(3):
        actual = after[labels == value, value]
        expected = reference.softmax(1)[reference_labels == value, value]
        margins = np.quantile(np.log(expected / (1 - expected)), (np.arange(4) + 0.5) / 4, method="hazen")
        np.testing.assert_allclose(actual.sort().values, 1 / (1 + np.exp(-margins)), rtol=1e-9)
    for row, label in enumerate(labels.tolist()):
        others = [k for k in range(4) if k != label]
        torch.testing.assert_close(after[row, others] / after[row, others].sum(), before[row, others] / before[row, others].sum())


def test_class_without_reference_photos_gets_the_distribution_of_all() -> None:
    labels, reference_labels = torch.full((4,), 2), torch.arange(8) % 2
    reference = noise(8, 3)
    source = LabelledLogits(noise(4, 3, seed=1), labels)
    matched = match_quantiles(
        source, LabelledLogits(reference, reference_labels), margin(source, "single_label"), HALF.expand(4), "single_label"
    )
    margins = reference.softmax(1)[torch.arange(8), reference_labels].logit()
    expected = np.quantile(margins, (np.arange(4) + 0.5) / 4, method="hazen")
    np.testing.assert_allclose(matched.softmax(1)[:, 2].logit().sort().values, expected)


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_another_ranking_assigns_the_same_targets_to_other_photos(kind: TaskKind) -> None:
    if kind == "multi_label":
        labels, reference_labels = random_attributes(80, 2), random_attributes(60, 3)
    else:
        labels, reference_labels = torch.arange(80) % 3, torch.arange(60) % 3
    source, reference = LabelledLogits(noise(80, 3), labels), LabelledLogits(noise(60, 3, seed=1), reference_labels)
    own = margin(source, kind)
    ranking = noise(*own.shape, seed=4)
    ranked, by_margin = (
        margin(LabelledLogits(match_quantiles(source, reference, by, HALF.expand(own.shape), kind), labels), kind) for by in (ranking, own)
    )
    for k in range(3):
        for value in (0, 1) if kind == "multi_label" else (k,):
            rows, where = (labels[:, k] == value, (slice(None), k)) if kind == "multi_label" else (labels == value, (slice(None),))
            one, other, by = ranked[where][rows], by_margin[where][rows], ranking[where][rows]
            torch.testing.assert_close(one.sort().values, other.sort().values)
            assert torch.equal(one.argsort(), by.argsort())
