"""Random search over a method's options: the axes that an options class declares, and the values of the next trial.

The first trials, and then every other one, are sampled from the whole ranges, the others near the best values so far. A trial depends only
on the seed, its number and the best values before it, so an interrupted search resumes with the same trials.
"""

from __future__ import annotations

import dataclasses
import math
import random
import typing
from collections.abc import Mapping
from typing import Any

from .options import fields, types_of
from .seeding import derive

GLOBAL_TRIALS = 4  # trials after the first that are sampled from the whole ranges before any is sampled near the best
LOCAL_STD = (1 / 60, 1 / 6)  # range of the standard deviation near the best, as a fraction of the axis; sampled log-uniformly
RESAMPLE_PROBABILITY = 1 / 4  # of a choice or boolean, near the best


@dataclasses.dataclass(frozen=True)
class Axis:
    """One option that is searched.

    Attributes:
        low: Smallest value, or 0 if the axis has choices.
        high: Largest value, or the number of choices minus one.
        integer: Whether values are whole numbers.
        choices: The values, if they are not numbers.
    """

    low: float
    high: float
    integer: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def logarithmic(self) -> bool:
        """Whether the axis has a log scale: if its range spans a factor of ten or more."""
        return self.low > 0 and self.high >= 10 * self.low

    def value_at(self, position: float) -> Any:
        """Return the value at a position between 0 and 1. Numbers have four significant digits, enough for a search and readable."""
        if self.choices:
            return self.choices[min(int(position * len(self.choices)), len(self.choices) - 1)]
        span = self.high - self.low
        value = self.low * (self.high / self.low) ** position if self.logarithmic else self.low + span * position
        return round(value) if self.integer else float(f"{value:.4g}")

    def sample_near(self, value: Any, draws: random.Random) -> Any:
        """Return a value near another one, or any value of the axis if the other one is not a number in its range."""
        # Always three draws, so that axes do not shift each other's draws.
        uniform, log_std, normal = draws.random(), draws.random(), draws.gauss(0, 1)
        if self.choices:
            return self.value_at(uniform / RESAMPLE_PROBABILITY) if uniform < RESAMPLE_PROBABILITY else value
        if not isinstance(value, int | float) or not self.low <= value <= self.high or self.low == self.high:
            return self.value_at(uniform)
        if self.logarithmic:
            position = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            position = (value - self.low) / (self.high - self.low)
        std = LOCAL_STD[1] * (LOCAL_STD[0] / LOCAL_STD[1]) ** log_std
        return self.value_at(min(max(position + std * normal, 0.0), 1.0))


def axes(options: type[Any]) -> dict[str, Axis]:
    """Return the search axes that an options class declares, by field."""
    types = types_of(options)
    found: dict[str, Axis] = {}
    for name, field in fields(options).items():
        search = field.metadata.get("search")
        if search is True:
            choices = field.metadata["choices"] or (False, True)
            found[name] = Axis(0, len(choices) - 1, choices=tuple(choices))
        elif search:
            found[name] = Axis(search[0], search[1], integer=int in (types[name], *typing.get_args(types[name])))
    return found


def propose(space: Mapping[str, Axis], number: int, seed: int, best: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the values of trial `number`: none for trial 0 (the defaults), then from the whole ranges, then near the best so far."""
    draws = random.Random(derive(seed, "trial", number))
    if number == 0:
        return {}
    if best is None or number <= GLOBAL_TRIALS or number % 2:
        return {name: axis.value_at(draws.random()) for name, axis in space.items()}
    return {name: axis.sample_near(best[name], draws) for name, axis in space.items()}
