"""A bootstrap over people, paired: the same resamples for every model, so that what two models share cancels in their difference.

    resamples = Resamples.draw(identities, 1000, generator)
    difference = resamples.average_precision(logits, labels) - resamples.average_precision(others, labels)
    percentile_interval(value, difference, resamples.people)

A resample is kept as how often each person is drawn. No photo is ever copied: a score of all resamples is a weighted score of one set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..errors import UsageError
from .intervals import Interval, draw_weights, owners, percentile_interval, portions

_CELLS = 128_000  # of float32 at once: what fits into the cache of a core is several times as fast as what does not


@dataclass(frozen=True, eq=False)
class Resamples:
    """Many times as many people as there are, drawn with replacement, each with all of their photos.

    Attributes:
        weights: How often each person is drawn, float32 (R, P).
        owner: Number of each photo's person, counted from 0, (n,).
    """

    weights: torch.Tensor
    owner: torch.Tensor

    @classmethod
    def draw(cls, identities: torch.Tensor, repetitions: int, generator: torch.Generator) -> Resamples:
        """Draw the people; the same generator gives the same resamples.

        Args:
            identities: The person of each photo, integers (n,).
            repetitions: How many resamples, R.
            generator: Draws the people.

        Raises:
            UsageError: There are fewer than one repetition.
        """
        if repetitions < 1:
            raise UsageError(f"A bootstrap needs at least one repetition, not {repetitions}.")
        owner, people = owners(identities)
        if not people:
            return cls(torch.zeros(repetitions, 0), owner)
        return cls(torch.cat([draw_weights(people, size, generator).float() for size in portions(repetitions, people)]), owner)

    @property
    def people(self) -> int:
        """How many people there are, the `units` of an interval."""
        return self.weights.shape[1]

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean over photos in each resample, float64 (R,); NaN without photos or where a value is NaN.

        Args:
            values: A number a photo, (n,); of hits in percent it is the accuracy.

        Raises:
            UsageError: There are not as many values as photos.
        """
        self._require_all(values)
        sums = torch.zeros(self.people, dtype=torch.float64).index_add_(0, self.owner, values.double())
        photos = torch.bincount(self.owner, minlength=self.people).double()
        weights = self.weights.double()
        return weights @ sums / (weights @ photos)

    def average_precision(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mAP of each resample, in percent, float64 (R,), as `functional.mean_average_precision` of its photos.

        A label without a positive in a resample is left out of that resample's mean. NaN where no label is left; everywhere where a logit
        is NaN.

        With w the weights, the average precision of a label is the sum, over its positives, of w times the share of positives among all
        photos down to there, divided by the positives' w. Each label is sorted once; both counts are running sums of weights, whole
        numbers, which float32 holds exactly up to 16 million photos.

        Args:
            logits: (n, K), higher means more likely.
            labels: (n, K) of 0/1.

        Raises:
            UsageError: There are not as many logits or labels as photos.
        """
        self._require_all(logits)
        self._require_all(labels)
        count = len(self.weights)
        total, known = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
        if len(logits) and not logits.isnan().any():
            for scores, truth in zip(logits.unbind(dim=1), labels.unbind(dim=1), strict=True):
                found = self._of_one_label(scores, truth != 0)
                total += found.nan_to_num(nan=0.0)
                known += ~found.isnan()
        return 100 * total / known

    def _of_one_label(self, scores: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Return the average precision of one label in each resample, 0..1, float64 (R,); NaN without a positive."""
        ordered, order = scores.sort(descending=True, stable=True)
        hits = truth[order]
        places = hits.nonzero().squeeze(1)  # of the m positives, the only ones where a precision is asked for
        # Equal scores share the precision at the end of their run.
        last = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)])
        run = last.cumsum(0) - last.long()  # number of each photo's run
        ends = last.nonzero().squeeze(1)[run][places]
        positives_before_end = hits.cumsum(0)[ends] - 1
        owner = self.owner[order]
        found = []
        for weights in self.weights.split(max(1, _CELLS // len(scores))):
            all_until = weights.index_select(1, owner).cumsum(1).index_select(1, ends)  # (R', m)
            own = weights.index_select(1, owner[places])
            right = own.cumsum(1)
            right_until = right.index_select(1, positives_before_end)
            areas = ((own * right_until).double() / all_until.clamp(min=1)).sum(1)
            found.append(areas / right[:, -1] if len(places) else torch.full_like(areas, math.nan))
        return torch.cat(found)

    def _require_all(self, values: torch.Tensor) -> None:
        if len(values) != len(self.owner):
            raise UsageError(f"These are resamples of {len(self.owner)} photos, and cannot be of {len(values)}.")


def reflected(value: float, found: torch.Tensor) -> torch.Tensor:
    """Return a score of resamples (R,), reflected at the score itself: its percentiles are the basic bootstrap interval.

    The fewer different photos, the higher the average precision. A resample has fewer than the sample, as the sample has fewer than all
    there are, so what resampling adds is what sampling has added, and is taken off (Davison and Hinkley 1997, section 5.2). In
    simulations with 5, 10 and 20 people the percentiles themselves held the mAP of all people in 33, 61 and 74 % of cases, the reflected
    ones in 93, 92 and 95 %; with fewer photos and attributes it was 85 % with 8 people.
    """
    return 2 * value - found


def tow_interval(value: float, differences: Sequence[tuple[float, torch.Tensor, int]], level: float = 0.95) -> Interval:
    """Return the interval of a ToW, which is never above 100 and whose resamples lean downwards.

    ToW counts the sizes of differences from the oracle, and a size cannot vary around 0: of a model as good as the oracle every resample
    is below 100, and so is every percentile. The lower end is the percentile's. The upper end is the ToW of differences as near to 0 as
    their own intervals, which together hold the true ones as often as `level` says, allow.

    Args:
        value: The ToW, in percent.
        differences: For each set the score less the oracle's in percent, the same in each resample (R,), and how many people there are.
        level: Wanted coverage.
    """
    sizes = torch.stack([found.abs() for _, found, _ in differences])
    low = percentile_interval(value, 100 * (1 - sizes / 100).prod(0), min(people for *_, people in differences), level)
    if math.isnan(low.low):
        return low
    high = 100.0
    for difference, found, people in differences:
        own = percentile_interval(difference, found, people, level ** (1 / len(differences)))
        nearest = 0.0 if own.low <= 0 <= own.high else min(abs(own.low), abs(own.high), abs(difference))
        high *= 1 - nearest / 100
    return replace(low, low=min(low.low, value), high=high)
