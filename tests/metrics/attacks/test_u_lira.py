"""U-LiRA against a plain loop over its formulas, and on Gaussian signals with a known AUC."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from oneshui_hf.errors import UsageError
from oneshui_hf.metrics.attack_scores import auc
from oneshui_hf.metrics.attacks import u_lira
from support.attack_data import normal, rng


def models(generator: torch.Generator, count: int, mean: torch.Tensor, spread: torch.Tensor | float = 1.0) -> torch.Tensor:
    return mean + spread * normal(generator, count, *mean.shape)


@pytest.mark.parametrize("count", [12, 70])  # a shared variance, and per-photo variances
def test_u_lira_on_gaussian_signals_reaches_the_theoretical_auc(count: int) -> None:
    """Half of the photos shift up and half shift down: a loss attack fails, an attack with per-photo means succeeds."""
    distance, photos = 1.5, 800
    generator = rng(0)
    mean = 3 * normal(generator, photos, 1)
    shifted = mean + distance * torch.where(torch.arange(photos) % 2 == 0, 1.0, -1.0).unsqueeze(1)
    found = u_lira(models(generator, count, shifted), models(generator, count, mean))
    assert found.members.shape == found.nonmembers.shape == (count, photos)
    theory = stats.norm.cdf(distance / math.sqrt(2))
    assert found.auc == pytest.approx(theory, abs=0.035)
    assert found.auc < theory + 0.01
    assert found.auc_best_direction == found.auc
    assert found.balanced_accuracy == pytest.approx(stats.norm.cdf(distance / 2), abs=0.025)
    assert found.smallest_fpr == 1 / photos
    assert found.tpr[0.1] == pytest.approx(stats.norm.cdf(distance + stats.norm.ppf(0.1)), abs=0.06)
    assert found.tpr[0.001] is None
    pooled = auc(models(generator, 1, shifted).flatten(), models(generator, 1, mean).flatten())
    assert pooled == pytest.approx(0.5, abs=0.03)


def test_u_lira_uses_per_photo_variances_with_enough_models() -> None:
    generator = rng(0)
    photos = 200
    spread = torch.where(torch.arange(photos) % 2 == 0, 0.2, 5.0).double().unsqueeze(1)
    mean = torch.zeros(photos, 1).double()
    sides = models(generator, 80, mean + 1, spread), models(generator, 80, mean, spread)
    few = u_lira(sides[0][:12], sides[1][:12])
    assert u_lira(*sides).auc > few.auc + 0.05


@pytest.mark.parametrize(("unlearned", "oracles"), [(1, 2), (1, 4), (2, 2), (2, 5), (3, 3), (5, 2), (12, 12)])
def test_u_lira_fails_on_perfectly_unlearned_models(unlearned: int, oracles: int) -> None:
    found = []
    for seed in range(60):
        generator = rng(seed)
        mean = 3 * normal(generator, 50, 3)
        found.append(u_lira(models(generator, unlearned, mean), models(generator, oracles, mean)).auc)
    assert np.mean(found) == pytest.approx(0.5, abs=3 * stats.sem(found))
    assert stats.sem(found) < 0.01


@pytest.mark.parametrize("unlearned", [1, 2, 6])
@pytest.mark.parametrize("shift", [-4.0, 4.0])
def test_u_lira_detects_both_directions_with_few_models(unlearned: int, shift: float) -> None:
    generator = rng(0)
    mean = 3 * normal(generator, 100, 2)
    found = u_lira(models(generator, unlearned, mean + shift), models(generator, 2, mean))
    assert found.auc > 0.9
    assert math.isnan(found.balanced_accuracy) if unlearned == 1 else found.balanced_accuracy > 0.85
    assert found.members.shape == (min(2, max(unlearned, 2)), 100)


def test_u_lira_matches_a_plain_loop() -> None:
    generator = rng(0)
    unlearned, oracles = models(generator, 4, normal(generator, 6, 2) + 1, 2.0), models(generator, 3, normal(generator, 6, 2))
    found = u_lira(unlearned, oracles)
    for number in range(3):
        u = np.delete(unlearned.numpy(), number, 0)
        o = np.delete(oracles.numpy(), number, 0)
        for photo in range(6):
            for side, scores in ((unlearned, found.members), (oracles, found.nonmembers)):
                score = 0.0
                for k in range(2):
                    for shadow, sign in ((u, 1), (o, -1)):
                        variance = np.mean([np.var(shadow[:, i, k], ddof=1) for i in range(6)]) * (1 + 1 / len(shadow))
                        score += sign * stats.norm.logpdf(side[number, photo, k], shadow[:, photo, k].mean(), math.sqrt(variance))
                assert scores[number, photo].item() == pytest.approx(score, abs=1e-10)
    shares = (found.members > 0).double().mean().item(), (found.nonmembers < 0).double().mean().item()
    assert shares[0] != shares[1]
    assert found.balanced_accuracy == pytest.approx(sum(shares) / 2)
    assert found.auc == pytest.approx(np.mean([auc(m, n) for m, n in zip(found.members, found.nonmembers, strict=True)]))


def test_invalid_arguments_of_u_lira_are_rejected() -> None:
    with pytest.raises(UsageError, match="two or more oracles"):
        u_lira(torch.zeros(2, 5, 1), torch.zeros(1, 5, 1))
    with pytest.raises(UsageError, match=r"given \(2, 5, 1\) and \(2, 4, 1\)"):
        u_lira(torch.zeros(2, 5, 1), torch.zeros(2, 4, 1))
