"""Which people score far above all others: Rosner's generalized extreme Studentized deviate test, for high values only.

Source: Rosner, "Percentage Points for a Generalized ESD Many-Outlier Procedure", Technometrics 1983. The test is for normal values, and
scores of few photos have longer tails. `person_outliers` compresses them first.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from ..errors import UsageError
from .intervals import student_quantile

MIN_VALUES = 3  # with fewer, no deviate is above its critical value
MOST = 4  # one in four may stand out
TAIL = 3.0  # median absolute deviations from the median, from which on scores are compressed


@dataclass(frozen=True)
class HighOutliers:
    """The result of a test.

    Attributes:
        positions: The values that stand out, the highest first.
        needed: One more value next to those that do not stand out would stand out above this one.
    """

    positions: tuple[int, ...]
    needed: float


def high_outliers(values: torch.Tensor, at_most: int, level: float) -> HighOutliers:
    """Return the values that are too high for draws from one normal distribution.

    The highest value is removed `at_most` times. Each time its deviate, (highest - mean) / standard deviation of what is left, is compared
    with a critical value. All removed up to the last that exceeds its critical value are outliers, so that several do not hide each other.

    On normal values, the probability that any is reported is `level`, and slightly more with few values: at a level of 0.05 it was at most
    0.063 with 20 and more values, 0.072 with 12, and 0.069 with 8 (20,000 simulations each, `at_most` a quarter of the values).

    Args:
        values: One number per person (n,), at least three.
        at_most: Largest number of outliers, at most n - 2.
        level: Family-wise error: the probability that any value of a normal sample is reported.

    Raises:
        UsageError: There are too few values, one is NaN or infinite, or `at_most` or `level` is out of range.
    """
    count = len(values)
    if count < MIN_VALUES or not 1 <= at_most <= count - 2:
        raise UsageError(f"A test for up to {at_most} outliers needs at least {max(MIN_VALUES, at_most + 2)} values, not {count}.")
    if not 0 < level < 1:
        raise UsageError(f"The error of a test must lie between 0 and 1, not {level}.")
    if not values.isfinite().all():
        raise UsageError("A test for outliers needs finite values.")
    ordered, order = values.double().sort(descending=True, stable=True)
    found = 0
    for removed in range(at_most):
        left = ordered[removed:]
        if _deviate(left) > critical_deviate(len(left), level):
            found = removed + 1
    rest = ordered[found:]
    spread = rest.std().item() * math.sqrt(1 + 1 / len(rest))
    needed = rest.mean().item() + student_quantile(1 - level / (len(rest) + 1), len(rest) - 1) * spread
    return HighOutliers(tuple(order[:found].tolist()), needed)


def most_outliers(count: int) -> int:
    """Return up to how many of so many people may stand out."""
    return max(1, count // MOST)


def person_outliers(scores: torch.Tensor, level: float) -> HighOutliers:
    """Return the people who score too high, by a test that holds its error on scores of real photos.

    With few photos per person, the scores of people who were not forgotten have long tails, in which the test of normal values finds
    too many outliers: on faces, of one photo each, in 47 % of samples of 36 people at a level of 5 %. So it is applied to asinh of the
    distance from the median, in units of `TAIL` median absolute deviations: nearly linear for most people, logarithmic in the tails. There
    it reports anybody in 9 % of the samples (6 % with two photos each, 1 % with four), and on normal values in fewer than `level`.

    Args:
        scores: One score per person (n,), at least three.
        level: Family-wise error.

    Returns:
        The people, and the score that one more would need.

    Raises:
        UsageError: As of `high_outliers`.
    """
    scores = scores.double()
    middle = scores.median()
    scale = TAIL * (scores - middle).abs().median()
    if scale == 0:  # most scores are equal
        return high_outliers(scores, most_outliers(len(scores)), level)
    found = high_outliers(((scores - middle) / scale).asinh(), most_outliers(len(scores)), level)
    return HighOutliers(found.positions, (middle + scale * math.sinh(found.needed)).item())


@functools.lru_cache(maxsize=1000)
def critical_deviate(count: int, level: float) -> float:
    """Return the value that the largest of so many deviates exceeds with a probability of `level`, Rosner's lambda for one side."""
    quantile = student_quantile(1 - level / count, count - 2)
    return (count - 1) * quantile / math.sqrt((count - 2 + quantile**2) * count)


def _deviate(values: torch.Tensor) -> float:
    """Return how many standard deviations the first value, the highest, is above the mean; 0 where all are equal."""
    spread = values.std().item()
    # The mean of equal values may differ from them by rounding.
    return (values[0] - values.mean()).item() / spread if spread > 1e-12 * values.abs().max().item() else 0.0
