"""The test for high outliers: Rosner's published example, its error rate, and samples with a known answer."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from oneshui_hf.errors import UsageError
from oneshui_hf.metrics.outliers import critical_deviate, high_outliers, most_outliers, person_outliers

# Rosner 1983, in the NIST/SEMATECH e-Handbook of Statistical Methods, section 1.3.5.17.3, with its statistics and critical values.
ROSNER = """-0.25 0.68 0.94 1.15 1.20 1.26 1.26 1.34 1.38 1.43 1.49 1.49 1.55 1.56 1.58 1.65 1.69 1.70 1.76 1.77 1.81 1.91 1.94 1.96 1.99
2.06 2.09 2.10 2.14 2.15 2.23 2.24 2.26 2.35 2.37 2.40 2.47 2.54 2.62 2.64 2.90 2.92 2.92 2.93 3.21 3.26 3.30 3.59 3.68 4.30 4.64 5.34
5.42 6.01"""
CRITICAL = [3.158, 3.151, 3.143, 3.136, 3.128, 3.120, 3.111, 3.103, 3.094, 3.085]
TWO_SIDED = 0.05


def test_published_example() -> None:
    values = torch.tensor([float(word) for word in ROSNER.split()], dtype=torch.float64)
    assert [critical_deviate(54 - removed, TWO_SIDED / 2) for removed in range(10)] == pytest.approx(CRITICAL, abs=1e-3)
    # The first two deviates, 3.118 and 2.942, are below their critical values; the third is not, so there are three outliers.
    assert high_outliers(values, 10, TWO_SIDED / 2).positions == (53, 52, 51)
    assert high_outliers(values, 2, TWO_SIDED / 2).positions == ()


def test_one_outlier_is_the_test_of_grubbs() -> None:
    """The deviate of one value exceeds its critical value exactly where Student's t of it against the others does."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        values = torch.randn(9, generator=generator, dtype=torch.float64)
        values[0] += 4
        top = int(values.argmax())
        rest = torch.cat([values[:top], values[top + 1 :]])
        t = ((values[top] - rest.mean()) / (rest.std() * math.sqrt(1 + 1 / len(rest)))).item()
        is_outlier = t > stats.t.ppf(1 - 0.05 / 9, 7)
        assert (high_outliers(values, 1, 0.05).positions == (top,)) == is_outlier


@pytest.mark.parametrize(("count", "allowed"), [(8, 0.085), (12, 0.085), (20, 0.085), (36, 0.075)])
def test_error_rate_on_normal_values(count: int, allowed: float) -> None:
    generator = torch.Generator().manual_seed(count)
    samples = torch.randn(800, count, generator=generator, dtype=torch.float64)
    rate = sum(bool(high_outliers(sample, count // 4, 0.05).positions) for sample in samples) / len(samples)
    assert 0.03 < rate < allowed


def test_several_outliers_do_not_hide_each_other() -> None:
    values = torch.randn(30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values[[3, 7, 20]] = torch.tensor([9.0, 9.1, 9.2], dtype=torch.float64)
    assert high_outliers(values, 7, 0.01).positions == (20, 7, 3)


def test_low_values_do_not_stand_out() -> None:
    values = torch.randn(30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values[4] = -20
    assert high_outliers(values, 7, 0.05).positions == ()


def test_needed_is_where_one_more_value_starts_to_stand_out() -> None:
    values = torch.randn(20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    needed = high_outliers(values, 1, 0.01).needed
    for shift, expected in ((-1e-6, ()), (1e-6, (20,))):
        assert high_outliers(torch.cat([values, torch.tensor([needed + shift])]), 1, 0.01).positions == expected


def test_equal_values_and_one_that_differs() -> None:
    values = torch.full((10,), 0.1, dtype=torch.float64)
    assert high_outliers(values, 2, 0.05).positions == ()
    values[6] = 0.2
    assert high_outliers(values, 2, 0.05).positions == (6,)
    assert math.isclose(high_outliers(values, 2, 0.05).needed, 0.1)


@pytest.mark.parametrize(
    ("values", "at_most", "level"),
    [([1.0, 2.0], 1, 0.05), ([1.0, 2.0, 3.0], 2, 0.05), ([1.0, 2.0, 3.0], 1, 1.0), ([1.0, math.nan, 3.0], 1, 0.05)],
)
def test_refuses_what_cannot_be_tested(values: list[float], at_most: int, level: float) -> None:
    with pytest.raises(UsageError):
        high_outliers(torch.tensor(values), at_most, level)


def laplace(count: int, generator: torch.Generator) -> torch.Tensor:
    """Return a sample whose tails fall exponentially, not as those of normal values."""
    return torch.empty(2, count, dtype=torch.float64).exponential_(generator=generator).diff(dim=0)[0]


@pytest.mark.parametrize("count", [8, 20, 36])
def test_long_tails_are_no_outliers(count: int) -> None:
    """On values with long tails, the plain test reports an outlier far too often and the test of people does not."""
    generator = torch.Generator().manual_seed(count)
    samples = [laplace(count, generator) for _ in range(500)]
    plain = sum(bool(high_outliers(sample, most_outliers(count), 0.05).positions) for sample in samples) / len(samples)
    compressed = sum(bool(person_outliers(sample, 0.05).positions) for sample in samples) / len(samples)
    assert plain > 0.1
    assert compressed < 0.1


def test_people_far_above_all_others_are_found_in_any_scale() -> None:
    scores = torch.randn(30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scores[[4, 11]] = torch.tensor([12.0, 15.0], dtype=torch.float64)
    for scale, shift in ((1, 0), (1e-6, 0), (50, -7)):
        found = person_outliers(scores * scale + shift, 0.01)
        assert found.positions == (11, 4)
        assert max(scores.sort().values[:28]) < (found.needed - shift) / scale < 12


def test_a_score_that_is_needed_is_where_one_more_person_starts_to_stand_out() -> None:
    """The compression depends on the scores, so the two agree up to what one more score changes of the median and the deviations."""
    scores = torch.randn(200, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    needed = person_outliers(scores, 0.01).needed
    for factor, expected in ((0.9, ()), (1.1, (200,))):
        assert person_outliers(torch.cat([scores, torch.tensor([needed * factor])]), 0.01).positions == expected


def test_most_scores_are_equal() -> None:
    scores = torch.zeros(12)
    assert person_outliers(scores, 0.05).positions == ()
    scores[5] = 1e-9
    assert person_outliers(scores, 0.05).positions == (5,)
