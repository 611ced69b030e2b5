"""Intervals over people: coverage on simulated people, and comparison with scipy and slow loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from oneshui_hf.errors import UsageError
from oneshui_hf.metrics.attack_scores import auc
from oneshui_hf.metrics.intervals import (
    Interval,
    auc_interval,
    bootstrap,
    is_beyond_noise,
    percentile_interval,
    student_quantile,
    t_interval,
)

SIMULATIONS = 500


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def people(count: int, generator: torch.Generator, effect: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers with mean 0: a person effect plus a photo effect; 5 to 39 photos per person."""
    identities = torch.arange(count).repeat_interleave(torch.randint(5, 40, (count,), generator=generator))
    own = effect * torch.randn(count, generator=generator, dtype=torch.float64)
    return own[identities] + torch.randn(len(identities), generator=generator, dtype=torch.float64), identities


def coverage(interval: Callable[[torch.Generator], Interval], true_value: float = 0.0, simulations: int = SIMULATIONS) -> float:
    """Percentage of intervals that contain the true value."""
    generator = rng(0)
    found = [interval(generator) for _ in range(simulations)]
    return 100 * sum(i.low <= true_value <= i.high for i in found) / simulations


@pytest.mark.parametrize("count", [3, 5, 10, 40])
def test_interval_of_a_mean_has_its_nominal_coverage(count: int) -> None:
    def by_person(generator: torch.Generator) -> Interval:
        values, identities = people(count, generator)
        return bootstrap(values, identities, 400, generator)

    def by_image(generator: torch.Generator) -> Interval:
        values, _ = people(count, generator)
        return bootstrap(values, torch.arange(len(values)), 100, generator)

    covered, naive = coverage(by_person), coverage(by_image, simulations=100)
    print(f"{count} people: resampling people covers {covered:.1f} %, resampling photos {naive:.1f} %")
    assert 93 <= covered <= 97
    assert naive < 60


@pytest.mark.parametrize("level", [0.8, 0.99])
def test_other_levels_have_their_nominal_coverage(level: float) -> None:
    def interval(generator: torch.Generator) -> Interval:
        return bootstrap(*people(20, generator), 600, generator, level)

    assert coverage(interval) == pytest.approx(100 * level, abs=3.5 if level == 0.8 else 1.0)


def test_interval_of_a_difference_of_two_models_has_its_nominal_coverage() -> None:
    """Both models have nearly the same value for a person, so their difference has a far smaller error than either."""

    def interval(generator: torch.Generator) -> Interval:
        first, identities = people(10, generator, effect=3.0)
        change, _ = people(10, generator, effect=0.2)
        change = change[: len(first)] if len(change) >= len(first) else torch.cat([change, change])[: len(first)]
        own = 0.2 * torch.randn(10, generator=generator, dtype=torch.float64)
        second = first + own[identities] + 0.3 * change
        return bootstrap(second - first, identities, 400, generator)

    assert 93 <= coverage(interval) <= 97


def test_interval_of_a_median_has_its_nominal_coverage() -> None:
    """The median has no formula for its error, so it uses the percentile interval."""

    def interval(generator: torch.Generator) -> Interval:
        values, identities = people(30, generator)
        return bootstrap(lambda positions: values[positions].median().item(), identities, 150, generator)

    assert 93 <= coverage(interval, simulations=300) <= 97


def two_groups(generator: torch.Generator, shift: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    members, first = people(8, generator)
    nonmembers, second = people(40, generator)
    return members + shift, nonmembers, (first, second)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_interval_of_an_auc_has_its_nominal_coverage(shift: float) -> None:
    true_value = stats.norm.cdf(shift / 2)  # each score has variance 2

    def interval(generator: torch.Generator) -> Interval:
        members, nonmembers, identities = two_groups(generator, shift)
        return auc_interval(members, nonmembers, identities)

    def by_image(generator: torch.Generator) -> Interval:
        members, nonmembers, _ = two_groups(generator, shift)
        return auc_interval(members, nonmembers, (torch.arange(len(members)), torch.arange(len(nonmembers))))

    assert 93 <= coverage(interval, true_value) <= 97
    assert coverage(by_image, true_value, simulations=100) < 70


def test_auc_from_pairs_of_people_is_the_auc() -> None:
    members, nonmembers, identities = two_groups(rng(0))
    members, nonmembers = members.round(decimals=1), nonmembers.round(decimals=1)  # ties
    found = auc_interval(members, nonmembers, identities)
    assert found.value == pytest.approx(auc(members, nonmembers), abs=1e-12)
    assert found.units == 8


def test_resampling_two_groups_separately_gives_nearly_the_same_auc_interval() -> None:
    members, nonmembers, identities = two_groups(rng(0))
    found = bootstrap(lambda a, b: auc(members[a], nonmembers[b]), identities, 1000, rng(1))
    closed = auc_interval(members, nonmembers, identities)
    assert found.value == pytest.approx(closed.value, abs=1e-12)
    assert (found.low, found.high) == (pytest.approx(closed.low, abs=0.04), pytest.approx(closed.high, abs=0.04))


def test_error_of_an_auc_matches_the_jackknife_over_people() -> None:
    """With equally many photos per person, the jackknife of each group equals this error."""
    members, nonmembers = torch.randn(36, generator=rng(0)) + 0.5, torch.randn(18, generator=rng(1))
    ids = (torch.arange(36) % 12, torch.arange(18) % 9)
    left_out = [
        torch.tensor([auc(members[ids[0] != i], nonmembers) for i in range(12)], dtype=torch.float64),
        torch.tensor([auc(members, nonmembers[ids[1] != i]) for i in range(9)], dtype=torch.float64),
    ]
    error = math.sqrt(sum((len(x) - 1) * x.var(correction=0).item() for x in left_out))
    found = auc_interval(members, nonmembers, ids)
    odds = [math.log(x / (1 - x)) for x in (found.low, found.value, found.high)]
    expected = stats.t.ppf(0.975, 8) * error / (found.value * (1 - found.value))
    assert odds[2] - odds[1] == pytest.approx(expected, rel=1e-9)
    assert odds[1] - odds[0] == pytest.approx(expected, rel=1e-9)


def test_resamples_that_repeat_one_person_are_left_out() -> None:
    """With two people, every second resample contains only one of them, and has no error."""
    found = bootstrap(torch.tensor([0.0, 1.0, 3.0, 5.0]), torch.tensor([0, 0, 1, 1]), 100, rng(0))
    low, high = stats.t.interval(0.95, 1, 2.25, stats.sem([0.5, 4.0]))  # only Student's interval remains
    assert found == Interval(2.25, pytest.approx(low), pytest.approx(high), 0.95, 2)
    same = bootstrap(torch.ones(4), torch.tensor([0, 0, 1, 1]), 100, rng(0))
    assert (same.low, same.high) == (1, 1)


def test_groups_that_do_not_overlap_have_no_estimable_error() -> None:
    ids = torch.arange(6) // 2
    found = auc_interval(torch.arange(6.0) + 10, torch.arange(6.0), (ids, ids))
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    mixed = auc_interval(torch.tensor([1.0, 3, 5, 7, 9, 11]), torch.tensor([0.0, 2, 4, 6, 8, 12]), (ids, ids))
    assert 0 < mixed.low < mixed.value < mixed.high < 1


def test_whole_people_are_resampled() -> None:
    identities = torch.tensor([7, 3, 7, 7, 3, 5])
    seen: list[list[int]] = []

    def record(positions: torch.Tensor) -> float:
        seen.append(positions.tolist())
        return 0.0

    bootstrap(record, identities, 50, rng(0))
    assert seen[0] == list(range(6))  # the statistic itself
    for positions in seen[1:]:
        counts = np.bincount(positions, minlength=6)
        assert counts[0] == counts[2] == counts[3]
        assert counts[1] == counts[4]
        assert counts[0] + counts[1] + counts[5] == 3  # as many people as there are
    assert len({tuple(sorted(p)) for p in seen}) > 5


def test_studentised_interval_matches_a_plain_loop() -> None:
    values, identities = people(6, rng(0))
    found = bootstrap(values, identities, 300, rng(1))
    drawn = torch.randint(6, (300, 6), generator=rng(1))
    persons = [values[identities == p].numpy() for p in range(6)]

    def mean_and_error(chosen: list[int]) -> tuple[float, float]:
        parts = [persons[p] for p in chosen]
        mean, size = np.concatenate(parts).mean(), sum(map(len, parts))
        return mean, math.sqrt(6 / 5 * sum((p.sum() - mean * len(p)) ** 2 for p in parts)) / size

    value, error = mean_and_error(list(range(6)))
    resampled = [mean_and_error(row) for row in drawn.tolist() if len(set(row)) > 1]
    reach = error * np.quantile([abs(m - value) / e for m, e in resampled], 0.95)
    assert found == Interval(pytest.approx(value), pytest.approx(value - reach), pytest.approx(value + reach), 0.95, 6)


def test_same_generator_gives_the_same_interval_and_global_rng_is_unchanged() -> None:
    values, identities = people(6, rng(0))
    state = torch.get_rng_state()
    assert bootstrap(values, identities, 100, rng(1)) == bootstrap(values, identities, 100, rng(1))
    assert bootstrap(values, identities, 100, rng(1)) != bootstrap(values, identities, 100, rng(2))
    assert torch.equal(state, torch.get_rng_state())


def test_chunk_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    members, nonmembers, identities = two_groups(rng(0))
    values, of = people(6, rng(0))
    whole = auc_interval(members, nonmembers, identities), bootstrap(values, of, 200, rng(1))
    monkeypatch.setattr("oneshui_hf.metrics.intervals._CELLS", 300)
    chunked = auc_interval(members, nonmembers, identities), bootstrap(values, of, 200, rng(1))
    for one, other in zip(whole, chunked, strict=True):
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), abs=1e-12)


def test_one_person_has_no_interval() -> None:
    one = torch.zeros(5, dtype=torch.int64)
    values = torch.rand(5, generator=rng(0))
    for found in (
        bootstrap(values, one, 10, rng(0)),
        bootstrap(lambda p: values[p].median().item(), one, 10, rng(0)),
        auc_interval(values, values, (one, torch.arange(5))),
    ):
        assert not math.isnan(found.value)
        assert math.isnan(found.low)
        assert math.isnan(found.high)
        assert found.units == 1


def test_nan_value_has_no_interval() -> None:
    values = torch.tensor([0.0, math.nan, 1.0, 2.0])
    ids = torch.tensor([0, 0, 1, 1])
    for found in (bootstrap(values, ids, 10, rng(0)), auc_interval(values, values, (ids, ids))):
        assert math.isnan(found.value)
        assert math.isnan(found.low)


def test_resamples_without_a_value_are_left_out() -> None:
    """A label that only one person has is missing in resamples without that person."""
    identities = torch.arange(4).repeat_interleave(3)
    found = bootstrap(lambda p: 2.0 if (identities[p] == 0).any() else math.nan, identities, 100, rng(0))
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)


def test_percentile_levels_are_adjusted_for_few_people() -> None:
    values = torch.randn(5000, generator=rng(0), dtype=torch.float64)
    tail = stats.norm.cdf(-math.sqrt(7 / 6) * stats.t.ppf(0.975, 6))
    assert tail < 0.01
    found = percentile_interval(0.5, values, 7)
    low, high = np.quantile(values.numpy(), [tail, 1 - tail])
    assert found == Interval(0.5, pytest.approx(low), pytest.approx(high), 0.95, 7)
    some = torch.cat([values, torch.tensor([math.nan])]).float()  # left out
    assert percentile_interval(0.5, some, 7).high == pytest.approx(high, abs=1e-6)
    for unknown in (
        percentile_interval(0.5, values, 1),
        percentile_interval(math.nan, values, 7),
        percentile_interval(0.5, some[-1:], 7),
        percentile_interval(0.5, values[:0], 7),
    ):
        assert math.isnan(unknown.low)
        assert math.isnan(unknown.high)
    with pytest.raises(UsageError, match="between 0 and 1"):
        percentile_interval(0.5, values, 7, 1.0)


def test_invalid_arguments_are_rejected() -> None:
    with pytest.raises(UsageError, match="as many identities as numbers"):
        bootstrap(torch.zeros(3), torch.zeros(4, dtype=torch.int64), 10, rng(0))
    with pytest.raises(UsageError, match="at least one repetition, not 0"):
        bootstrap(torch.zeros(3), torch.zeros(3, dtype=torch.int64), 0, rng(0))
    with pytest.raises(UsageError, match="between 0 and 1, not 95"):
        t_interval([1.0, 2.0], 95)
    with pytest.raises(UsageError, match="at least one value"):
        t_interval([])


STUDENT_TABLE = {  # quantiles of published tables of Student's t; 1 and 2 degrees have closed forms
    (0.975, 1): math.tan(math.pi * 0.475),
    (0.975, 2): 0.95 * math.sqrt(2 / (1 - 0.95**2)),
    (0.975, 4): 2.776445,
    (0.975, 9): 2.262157,
    (0.975, 30): 2.042272,
    (0.95, 5): 2.015048,
    (0.995, 10): 3.169273,
    (0.9995, 3): 12.923979,
    (0.975, 1000): 1.962339,
    (0.975, 10**6): 1.959966,
}


@pytest.mark.parametrize(("probability", "degrees"), STUDENT_TABLE)
def test_student_quantile_matches_known_values(probability: float, degrees: int) -> None:
    expected = STUDENT_TABLE[probability, degrees]
    assert student_quantile(probability, degrees) == pytest.approx(expected, rel=1e-12 if degrees < 3 else 1e-6)
    assert student_quantile(1 - probability, degrees) == pytest.approx(-expected, rel=1e-10 if degrees < 3 else 1e-6)


def test_median_of_student_is_zero() -> None:
    assert student_quantile(0.5, 7) == pytest.approx(0, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.floats(0.5, 0.999))
def test_interval_over_seeds_matches_scipy(values: list[float], level: float) -> None:
    found = t_interval(values, level)
    spread = stats.sem(values)
    low, high = stats.t.interval(level, len(values) - 1, np.mean(values), spread) if spread else (np.mean(values), np.mean(values))
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-7, rel=1e-8), pytest.approx(high, abs=1e-7, rel=1e-8))


def test_one_seed_has_no_interval() -> None:
    found = t_interval(torch.tensor([3.0]))
    assert found.value == 3.0
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_difference_is_beyond_noise_only_above_the_floor() -> None:
    assert is_beyond_noise(0.5, 0.3)
    assert is_beyond_noise(-0.5, 0.3)
    assert is_beyond_noise(-0.5, -0.3)
    assert not is_beyond_noise(0.2, -0.3)
    assert not is_beyond_noise(0.3, 0.3)
    assert not is_beyond_noise(math.nan, 0.3)
    assert not is_beyond_noise(0.3, math.nan)


def test_interval_is_beyond_noise_only_as_a_whole() -> None:
    assert is_beyond_noise(Interval(0.5, 0.4, 0.6, 0.95, 5), 0.3)
    assert is_beyond_noise(Interval(-0.5, -0.6, -0.4, 0.95, 5), 0.3)
    assert not is_beyond_noise(Interval(0.5, 0.2, 0.8, 0.95, 5), 0.3)
    assert not is_beyond_noise(Interval(0.5, math.nan, math.nan, 0.95, 1), 0.3)
