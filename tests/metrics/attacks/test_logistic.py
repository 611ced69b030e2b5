"""The logistic attack against scikit-learn, and on features with a known answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression

from oneshui_hf.errors import UsageError
from oneshui_hf.metrics.attacks import logistic_attack
from oneshui_hf.metrics.attacks.logistic import fit_logistic
from support.attack_data import normal, rng, two_groups


@pytest.mark.parametrize("ridge", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("distance", [0.0, 1.0, 50.0])  # 50: separable
def test_logistic_regression_matches_scikit_learn(ridge: float, distance: float) -> None:
    truth = (torch.arange(200) < 45).double()
    features = normal(rng(0), 200, 2) + distance * truth.unsqueeze(1)
    weights, intercept = fit_logistic(features, truth, ridge)
    theirs = LogisticRegression(C=1 / ridge, class_weight="balanced", tol=1e-12, max_iter=10_000).fit(features.numpy(), truth.numpy())
    assert weights.tolist() == pytest.approx(theirs.coef_[0].tolist(), rel=1e-4, abs=1e-5)
    assert intercept.item() == pytest.approx(theirs.intercept_[0], rel=1e-4, abs=1e-5)


def test_logistic_attack_scores_only_people_it_was_not_trained_on() -> None:
    """Features identify the person and nothing else: training on another photo of the same person would reveal membership."""
    ids = two_groups((10, 10), 6)
    people = normal(rng(0), 20, 30)
    members, nonmembers = people[ids[0]], people[10 + ids[1] - 1000]
    found = [logistic_attack(members, nonmembers, ids, rng(seed)).auc for seed in range(10)]
    assert abs(np.mean(found) - 0.5) < 0.25
    by_photo = logistic_attack(members, nonmembers, (torch.arange(60), torch.arange(60)), rng(0)).auc
    assert by_photo > 0.9


def test_logistic_attack_is_unbiased_without_a_difference() -> None:
    """Comparing raw outputs of different folds would be biased below 0.5, and so hide a leak."""
    ids = two_groups((5, 10), 6)
    found, accuracies = [], []
    for seed in range(150):
        generator = rng(seed)
        own = normal(generator, 15, 2)[torch.arange(15).repeat_interleave(6)]
        features = own + normal(generator, 90, 2)
        result = logistic_attack(features[:30], features[30:], ids, generator)
        found.append(result.auc)
        accuracies.append(result.balanced_accuracy)
    assert np.mean(found) == pytest.approx(0.5, abs=2.5 * stats.sem(found))
    assert np.mean(accuracies) == pytest.approx(0.5, abs=2.5 * stats.sem(accuracies))
    assert stats.sem(found) < 0.02


@pytest.mark.parametrize("shift", [-1.5, 1.5])
def test_logistic_attack_learns_its_direction(shift: float) -> None:
    ids = two_groups()
    members, nonmembers = normal(rng(0), len(ids[0]), 2), normal(rng(1), len(ids[1]), 2)
    members[:, 0] += shift
    found = logistic_attack(members, nonmembers, ids, rng(0))
    assert found.auc == found.auc_best_direction
    assert found.auc == pytest.approx(stats.norm.cdf(1.5 / math.sqrt(2)), abs=0.05)
    assert found.balanced_accuracy == pytest.approx(stats.norm.cdf(0.75), abs=0.06)


def test_logistic_attack_scores_within_a_fold() -> None:
    """Two folds, one feature: the score is the share of the fold's non-members with a lower output."""
    ids = (torch.arange(2).repeat_interleave(5), torch.arange(2).repeat_interleave(8))
    members, nonmembers = normal(rng(0), 10, 1) + 3, normal(rng(1), 16, 1)
    found = logistic_attack(members, nonmembers, ids, rng(0), folds=2)
    paired = []
    for first in (0, 1):
        n = nonmembers[ids[1] == first, 0]
        paired.append([(m > n).double().mean().item() for m in members[:, 0]])
    for position, score in enumerate(found.members.tolist()):
        assert min(abs(score - paired[0][position]), abs(score - paired[1][position])) < 1e-12
    assert sorted(found.nonmembers.tolist()) == pytest.approx(sorted([(i + 0.5) / 8 for i in range(8)] * 2))


def test_logistic_attack_on_nan_features_gives_nan() -> None:
    ids = two_groups()
    members, nonmembers = normal(rng(0), len(ids[0]), 2), normal(rng(1), len(ids[1]), 2)
    members[0, 0] = math.nan
    assert math.isnan(logistic_attack(members, nonmembers, ids, rng(0)).auc)


def test_logistic_attack_needs_two_people_on_each_side() -> None:
    with pytest.raises(UsageError, match="two forgotten people"):
        logistic_attack(torch.zeros(3, 2), torch.zeros(3, 2), (torch.zeros(3), torch.arange(3)), rng(0))
