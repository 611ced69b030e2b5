"""Searching for options: the axes that an options class declares, and the values to try next.

The first trials, and then every other one, are drawn from the whole ranges, the rest near the best so far. What is tried depends on the
seed, the trial's number and the best before it alone, so that an interrupted search goes on as if nothing had happened.
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

ANYWHERE = 4  # trials after the first before any is drawn near the best
NEAR = (1 / 60, 1 / 6)  # standard deviation of a value near the best, as a share of its range: drawn between these, by factors
OTHER = 1 / 4  # how often a word or a yes-or-no is drawn again near the best


@dataclasses.dataclass(frozen=True)
class Axis:
    """One option that is searched.

    Attributes:
        low: Smallest value, or 0 where there are words.
        high: Largest value, or the number of words less one.
        whole: Whether values are whole numbers.
        words: The values, where they are not numbers.
    """

    low: float
    high: float
    whole: bool = False
    words: tuple[Any, ...] = ()

    @property
    def logarithmic(self) -> bool:
        """Whether factors count rather than differences: where the range spans a factor of ten or more."""
        return self.low > 0 and self.high >= 10 * self.low

    def at(self, place: float) -> Any:
        """Return the value at a place between 0 and 1. Numbers have four digits, enough for a search and good to read."""
        if self.words:
            return self.words[min(int(place * len(self.words)), len(self.words) - 1)]
        step = self.high - self.low
        value = self.low * (self.high / self.low) ** place if self.logarithmic else self.low + step * place
        return round(value) if self.whole else float(f"{value:.4g}")

    def near(self, value: Any, draws: random.Random) -> Any:
        """Return a value near another one; anywhere where that is not a number of the range."""
        # Drawn in any case, so that axes do not shift each other's draws.
        anywhere, fine, step = draws.random(), draws.random(), draws.gauss(0, 1)
        if self.words:
            return self.at(anywhere / OTHER) if anywhere < OTHER else value
        if not isinstance(value, int | float) or not self.low <= value <= self.high or self.low == self.high:
            return self.at(anywhere)
        if self.logarithmic:
            place = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            place = (value - self.low) / (self.high - self.low)
        width = NEAR[1] * (NEAR[0] / NEAR[1]) ** fine
        return self.at(min(max(place + width * step, 0.0), 1.0))


def axes(options: type[Any]) -> dict[str, Axis]:
    """Return the axes that an options class declares, by field."""
    types = types_of(options)
    found: dict[str, Axis] = {}
    for name, field in fields(options).items():
        search = field.metadata.get("search")
        if search is True:
            words = field.metadata["choices"] or (False, True)
            found[name] = Axis(0, len(words) - 1, words=tuple(words))
        elif search:
            found[name] = Axis(search[0], search[1], whole=int in (types[name], *typing.get_args(types[name])))
    return found


def propose(space: Mapping[str, Axis], number: int, seed: int, best: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what trial `number` tries: nothing at first (the defaults), then anywhere, then near the best so far."""
    draws = random.Random(derive(seed, "trial", number))
    if number == 0:
        return {}
    if best is None or number <= ANYWHERE or number % 2:
        return {name: axis.at(draws.random()) for name, axis in space.items()}
    return {name: axis.near(best[name], draws) for name, axis in space.items()}
