"""IAM, against its definition computed with scipy, and on models with a known answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import gumbel_r

from oneshui_hf.errors import UsageError
from oneshui_hf.metrics.attack_signals import Signals
from oneshui_hf.metrics.attacks import iam
from oneshui_hf.metrics.attacks.iam import LEVELS, fit_gumbel, gumbel_signal, iam_scores
from oneshui_hf.metrics.intervals import auc_interval
from support.attack_data import face_signals, normal, rng, two_groups


def test_gumbel_distribution_has_the_moments_of_the_sample() -> None:
    values = torch.stack([3 * normal(rng(0), 500) - 7, normal(rng(1), 500).exp()], dim=1)
    locations, scales = fit_gumbel(values)
    for column, (location, scale) in enumerate(zip(locations.tolist(), scales.tolist(), strict=True)):
        fitted = gumbel_r(location, scale)
        assert fitted.mean() == pytest.approx(values[:, column].mean().item(), abs=1e-12)
        assert fitted.var() == pytest.approx(values[:, column].var(correction=0).item(), rel=1e-12)


def test_moments_recover_the_parameters_of_a_gumbel_sample() -> None:
    sample = torch.from_numpy(gumbel_r(2.0, 0.7).rvs(size=(200_000, 1), random_state=0))
    location, scale = fit_gumbel(sample)
    assert location.item() == pytest.approx(2.0, abs=0.01)
    assert scale.item() == pytest.approx(0.7, abs=0.01)


def test_signal_is_bounded_and_increasing() -> None:
    probabilities = torch.tensor([0, 1e-9, 0.1, 0.5, 0.9, 0.999, 1], dtype=torch.float64)
    found = gumbel_signal(probabilities)
    assert found.tolist() == pytest.approx([-math.log(0.01 - math.log(p + 1e-5)) for p in probabilities.tolist()])
    assert (found.diff() > 0).all()
    assert found.isfinite().all()


def test_score_matches_its_definition() -> None:
    photos, population = face_signals(rng(1), torch.arange(20), 3), face_signals(rng(2), torch.arange(50), 3)
    photos, population = (Signals(of.target[0], of.references[:, 0]) for of in (photos, population))

    def r(p: np.ndarray) -> np.ndarray:
        return -np.log(0.01 - np.log(p + 1e-5))

    residuals = r(np.exp(population.target.numpy())) - r(np.exp(population.references.numpy()).mean(axis=0))
    beta = residuals.std(axis=0) * np.sqrt(6) / np.pi
    p_out = np.exp(photos.references.numpy()).mean(axis=0)
    expected = np.zeros(20)
    for level in range(LEVELS):
        share = level / (LEVELS - 1)
        location = r((1 - share) * p_out + share) + residuals.mean(axis=0) - np.euler_gamma * beta
        expected += gumbel_r(location, beta).cdf(r(np.exp(photos.target.numpy()))).mean(axis=1) / LEVELS
    assert np.allclose(iam_scores(photos, population).numpy(), expected, atol=1e-12)


def attack(gain: float, seed: int) -> tuple[float, float, tuple[float, float]]:
    """Return AUC, AUC in the best direction and interval for members whose losses are multiplied by `gain`."""
    ids = two_groups()
    generator = rng(seed)
    sides = [face_signals(generator, side, 4, factor) for side, factor in zip(ids, (gain, 1.0), strict=True)]
    population = face_signals(generator, torch.arange(200), 4)
    members, nonmembers, population = (Signals(of.target[0], of.references[:, 0]) for of in (*sides, population))
    found = iam(members, nonmembers, population, ids, rng(0))
    interval = auc_interval(found.members, found.nonmembers, ids)
    return found.auc, found.auc_best_direction, (interval.low, interval.high)


def test_a_forgotten_model_is_chance_within_the_interval() -> None:
    inside = [low <= 0.5 <= high for low, high in (attack(1.0, seed)[2] for seed in range(20))]
    assert sum(inside) >= 16


def test_memorised_and_over_forgotten_members_are_found_in_either_direction() -> None:
    memorised, over = attack(0.05, 1), attack(5.0, 1)
    assert memorised[0] > 0.85
    assert over[0] < 0.2
    assert over[1] > 0.8


def test_an_empty_population_is_refused() -> None:
    signals = Signals(torch.zeros(3, 2), torch.zeros(1, 3, 2))
    with pytest.raises(UsageError, match="population"):
        iam(signals, signals, Signals(torch.zeros(0, 2), torch.zeros(1, 0, 2)), two_groups(), rng(0))
