"""Strangers' answers: distributions that are met exactly, ranks that are kept, and average precision against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

from oneshui_hf.methods import TaskKind
from oneshui_plugins.forget_keys.target_logits import Said, as_strangers, at_the_same_rank, sureness

HALF = torch.tensor(0.5)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attributes(count: int, seed: int) -> torch.Tensor:
    return (noise(count, 3, seed=seed) > 0).double()


def test_as_many_of_a_sample_change_places_one_by_one() -> None:
    values, sample = noise(50), 3 * noise(50, seed=1) + 2
    mapped = at_the_same_rank(values, sample, HALF)
    torch.testing.assert_close(mapped.sort().values, sample.sort().values)
    assert torch.equal(mapped.argsort(), values.argsort())


@pytest.mark.parametrize("size", [1, 7, 400])
def test_quantiles_are_those_of_numpy(size: int) -> None:
    values, sample = noise(9), noise(size, seed=1)
    places = (values.argsort().argsort().numpy() + 0.5) / 9
    expected = np.quantile(sample.numpy(), places, method="hazen")
    np.testing.assert_allclose(at_the_same_rank(values, sample, HALF), expected, atol=1e-12)


@pytest.mark.parametrize("photos", [1, 3])
def test_few_photos_take_the_whole_distribution_in_turn(photos: int) -> None:
    sample, draws = noise(500).exp(), torch.Generator().manual_seed(1)  # skewed: its mean is not its median
    values = noise(photos, seed=2)
    taken = torch.cat([at_the_same_rank(values, sample, torch.rand(photos, generator=draws)) for _ in range(4000)])
    assert abs(taken.mean() - sample.mean()) < 0.12
    assert abs(taken.quantile(0.95) - sample.quantile(0.95)) < 0.4
    middle = at_the_same_rank(values, sample, HALF)
    assert middle.mean() < 0.9 * sample.mean()


def test_a_sample_of_the_same_distribution_changes_little() -> None:
    values = noise(4000)
    assert (at_the_same_rank(values, noise(4000, seed=1), HALF) - values).abs().mean() < 0.05


def test_every_attribute_and_value_takes_the_strangers_distribution() -> None:
    labels, theirs = attributes(400, 2), attributes(300, 3)
    logits, strange = 8 * (2 * labels - 1) + noise(400, 3), noise(300, 3, seed=1) + theirs - 0.5
    mapped = as_strangers(Said(logits, labels), Said(strange, theirs), logits, HALF.expand(logits.shape), "multi_label")
    for k in range(3):
        for value in (0, 1):
            ours, wanted = mapped[labels[:, k] == value, k], strange[theirs[:, k] == value, k]
            for quantile in (0.1, 0.5, 0.9):
                assert abs(ours.quantile(quantile) - wanted.quantile(quantile)) < 0.1
        before = average_precision_score(labels[:, k], logits[:, k])
        after, level = (average_precision_score(y[:, k], z[:, k]) for y, z in ((labels, mapped), (theirs, strange)))
        assert before == 1
        assert abs(after - level) < 0.06  # the share of positives differs, too


def test_a_value_that_no_stranger_has_stays() -> None:
    labels, theirs = torch.ones(6, 1).double(), torch.zeros(5, 1).double()
    logits = noise(6, 1)
    mapped = as_strangers(Said(logits, labels), Said(noise(5, 1, seed=1), theirs), logits, HALF.expand(6, 1), "multi_label")
    assert torch.equal(mapped, logits)


def test_the_true_class_gets_its_probability_and_the_others_share_the_rest_as_before() -> None:
    labels, theirs = torch.arange(12) % 3, torch.arange(9) % 3
    logits, strange = noise(12, 4) + 9 * F.one_hot(labels, 4), noise(9, 4, seed=1)
    said = Said(logits, labels)
    mapped = as_strangers(said, Said(strange, theirs), sureness(said, "single_label"), HALF.expand(12), "single_label")
    before, after = logits.softmax(1), mapped.softmax(1)
    torch.testing.assert_close(mapped.exp().sum(1), torch.ones(12).double())  # they are log-probabilities
    for value in range(3):
        ours = after[labels == value, value]
        wanted = strange.softmax(1)[theirs == value, value]
        margins = np.quantile(np.log(wanted / (1 - wanted)), (np.arange(4) + 0.5) / 4, method="hazen")
        np.testing.assert_allclose(ours.sort().values, 1 / (1 + np.exp(-margins)), rtol=1e-9)
    for row, label in enumerate(labels.tolist()):
        others = [k for k in range(4) if k != label]
        torch.testing.assert_close(after[row, others] / after[row, others].sum(), before[row, others] / before[row, others].sum())


def test_a_class_that_no_stranger_has_takes_the_distribution_of_all() -> None:
    labels, theirs = torch.full((4,), 2), torch.arange(8) % 2
    strange = noise(8, 3)
    said = Said(noise(4, 3, seed=1), labels)
    mapped = as_strangers(said, Said(strange, theirs), sureness(said, "single_label"), HALF.expand(4), "single_label")
    margin = strange.softmax(1)[torch.arange(8), theirs].logit()
    np.testing.assert_allclose(mapped.softmax(1)[:, 2].logit().sort().values, np.quantile(margin, (np.arange(4) + 0.5) / 4, method="hazen"))


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_another_order_gives_the_same_answers_to_other_photos(kind: TaskKind) -> None:
    labels, theirs = (attributes(80, 2), attributes(60, 3)) if kind == "multi_label" else (torch.arange(80) % 3, torch.arange(60) % 3)
    said, strangers = Said(noise(80, 3), labels), Said(noise(60, 3, seed=1), theirs)
    own = sureness(said, kind)
    order = noise(*own.shape, seed=4)
    ranked, as_sure = (sureness(Said(as_strangers(said, strangers, by, HALF.expand(own.shape), kind), labels), kind) for by in (order, own))
    for k in range(3):
        for value in (0, 1) if kind == "multi_label" else (k,):
            these, where = (labels[:, k] == value, (slice(None), k)) if kind == "multi_label" else (labels == value, (slice(None),))
            one, other, by = ranked[where][these], as_sure[where][these], order[where][these]
            torch.testing.assert_close(one.sort().values, other.sort().values)
            assert torch.equal(one.argsort(), by.argsort())
