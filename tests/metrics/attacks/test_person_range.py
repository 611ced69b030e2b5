"""The range attack on people: trimmed means against scipy, and people with a known answer."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import trim_mean

from oneshui_hf.metrics.attacks.person_range import TRIM, person_range_attack, person_scores, trimmed_mean
from oneshui_hf.metrics.intervals import auc_interval
from support.attack_data import normal, rng, two_groups


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 13, 40])
@pytest.mark.parametrize("trim", [0.0, 0.1, TRIM, 0.4])
def test_trimmed_mean_is_that_of_scipy(count: int, trim: float) -> None:
    values = normal(rng(count), count)
    assert trimmed_mean(values, trim).item() == pytest.approx(trim_mean(values.numpy(), trim), abs=1e-12)


def test_scores_of_people_are_in_ascending_order_of_their_numbers() -> None:
    identities = torch.tensor([9, 2, 9, 9, 2, 9, 9])
    ratios = torch.tensor([1.0, 5.0, 2.0, 3.0, 7.0, 100.0, -100.0])
    assert person_scores(ratios, identities).tolist() == [6.0, 2.0]
    assert math.isnan(person_scores(torch.full((7,), math.nan), identities)[0])


def test_a_leak_in_most_photos_of_a_person_is_found_and_one_extreme_photo_is_not() -> None:
    ids = two_groups((10, 30), 9)
    noise = [normal(rng(seed), len(side)) for seed, side in enumerate(ids)]
    leak = person_range_attack(noise[0] + 1.5, noise[1], ids, rng(0))
    assert leak.auc > 0.95
    assert (len(leak.members), len(leak.nonmembers)) == (10, 30)
    over = person_range_attack(noise[0] - 1.5, noise[1], ids, rng(0))
    assert over.auc < 0.05
    assert over.auc_best_direction > 0.95
    outlier = noise[0].clone()
    outlier[torch.arange(0, len(outlier), 9)] = 1000.0
    plain, one = (person_range_attack(of, noise[1], ids, rng(0)).auc for of in (noise[0], outlier))
    assert abs(plain - one) < 0.25
    assert torch.isfinite(person_range_attack(outlier, noise[1], ids, rng(0)).members).all()


def test_a_forgotten_model_is_chance_within_the_interval() -> None:
    ids = two_groups((12, 30), 6)
    inside = 0
    for seed in range(30):
        photos = [normal(rng(seed + 100 * part), len(side)) for part, side in enumerate(ids)]
        found = person_range_attack(photos[0], photos[1], ids, rng(0))
        people = torch.arange(len(found.members)), torch.arange(len(found.nonmembers))
        interval = auc_interval(found.members, found.nonmembers, people)
        inside += interval.low <= 0.5 <= interval.high
    assert inside >= 25
