"""A paired bootstrap over people: all models are scored on the same resamples, so that common variation cancels in their difference.

    resamples = Resamples.draw(identities, 1000, generator)
    difference = resamples.average_precision(logits, labels) - resamples.average_precision(others, labels)
    percentile_interval(value, difference, resamples.people)

A resample is stored as the number of times that each person is drawn. No photo is copied: the score of a resample is a weighted score of
the original set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..errors import UsageError
from .intervals import Interval, chunk_sizes, draw_weights, index_people, percentile_interval
from .ordering import descending_order, runs_of_equal

_CELLS = 128_000  # of float32 at once: a chunk that fits into the cache of a core is several times as fast as a larger one


@dataclass(frozen=True, eq=False)
class Resamples:
    """Resamples of people with replacement, as many as there are, each with all of their photos.

    Attributes:
        weights: How often each person is drawn, float32 (R, P).
        person_index: Index of each photo's person, counted from 0, (n,).
    """

    weights: torch.Tensor
    person_index: torch.Tensor

    @classmethod
    def draw(cls, identities: torch.Tensor, repetitions: int, generator: torch.Generator) -> Resamples:
        """Draw the people; the same generator state gives the same resamples.

        Args:
            identities: The person on each photo, integers (n,).
            repetitions: How many resamples, R.
            generator: Draws the people.

        Raises:
            UsageError: The number of repetitions is below one.
        """
        if repetitions < 1:
            raise UsageError(f"A bootstrap needs at least one repetition, not {repetitions}.")
        person_index, people = index_people(identities)
        if not people:
            return cls(torch.zeros(repetitions, 0), person_index)
        chunks = [draw_weights(people, size, generator).float() for size in chunk_sizes(repetitions, people)]
        return cls(torch.cat(chunks), person_index)

    @property
    def people(self) -> int:
        """Number of people, the `units` of an interval."""
        return self.weights.shape[1]

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean over photos in each resample, float64 (R,); NaN without photos or where a value is NaN.

        Args:
            values: One number per photo, (n,). If it is 100 for a correct photo and 0 for any other, the mean is the accuracy in percent.

        Raises:
            UsageError: The number of values differs from the number of photos.
        """
        self._require_all(values)
        sums = torch.zeros(self.people, dtype=torch.float64).index_add_(0, self.person_index, values.double())
        photos = torch.bincount(self.person_index, minlength=self.people).double()
        weights = self.weights.double()
        return weights @ sums / (weights @ photos)

    def average_precision(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mAP of each resample, in percent, float64 (R,), as `functional.mean_average_precision` of its photos.

        A label that is constant in a resample (no positive, or no negative) is left out of that resample's mean. NaN where no label is
        left; NaN everywhere if any logit is NaN.

        With weights w, the average precision of a label is the sum over its positives of w times the precision at their rank, divided by
        the positives' total w. Each label is sorted once. Both counts of the precision are cumulative sums of weights: whole numbers,
        which float32 represents exactly up to 16 million photos.

        Args:
            logits: (n, K), higher means more likely.
            labels: (n, K) of 0/1.

        Raises:
            UsageError: The number of logits or labels differs from the number of photos.
        """
        self._require_all(logits)
        self._require_all(labels)
        count = len(self.weights)
        total, known = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
        if len(logits) and not logits.isnan().any():
            for scores, targets in zip(logits.T.contiguous(), labels.T.contiguous(), strict=True):
                precision = self._label_average_precision(scores, targets != 0)
                total += precision.nan_to_num(nan=0.0)
                known += ~precision.isnan()
        return 100 * total / known

    def _label_average_precision(self, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the average precision of one label in each resample, 0..1, float64 (R,); NaN where the label is constant."""
        order = descending_order(scores)
        hits = targets[order]
        ranks = hits.nonzero().squeeze(1)  # of the m positives; the precision is computed at these ranks only
        # Equal scores share the precision at the end of their run.
        is_last, run = runs_of_equal(scores[order])
        ends = is_last.nonzero().squeeze(1)[run][ranks]
        positives_before_end = hits.cumsum(0)[ends] - 1
        person_index = self.person_index[order]
        chunks = []
        for weights in self.weights.split(max(1, _CELLS // len(scores))):
            photos = weights.index_select(1, person_index).cumsum(1)  # (R', n); the last column is the number of photos
            photos_until_end = photos.index_select(1, ends)  # (R', m)
            positive_weights = weights.index_select(1, person_index[ranks])
            positives = positive_weights.cumsum(1)
            positives_until_end = positives.index_select(1, positives_before_end)
            areas = ((positive_weights * positives_until_end).double() / photos_until_end.clamp(min=1)).sum(1)
            if len(ranks):
                areas = (areas / positives[:, -1]).masked_fill(positives[:, -1] == photos[:, -1], math.nan)
            else:
                areas = torch.full_like(areas, math.nan)
            chunks.append(areas)
        return torch.cat(chunks)

    def _require_all(self, values: torch.Tensor) -> None:
        if len(values) != len(self.person_index):
            raise UsageError(f"The resamples are of {len(self.person_index)} photos, but {len(values)} values were given.")


def reflect_resamples(value: float, resampled: torch.Tensor) -> torch.Tensor:
    """Return a score of resamples (R,), reflected at the score itself: its percentiles are the basic bootstrap interval.

    Average precision is biased upwards with few distinct photos. A resample has fewer distinct photos than the sample, as the sample has
    fewer than the population, so resampling adds the same bias as sampling, and reflection subtracts it (Davison and Hinkley 1997, section
    5.2). In simulations with 5, 10 and 20 people the percentiles themselves covered the mAP of the population in 33, 61 and 74 % of cases,
    the reflected ones in 93, 92 and 95 %; with fewer photos and attributes it was 85 % with 8 people.
    """
    return 2 * value - resampled


def tow_interval(value: float, differences: Sequence[tuple[float, torch.Tensor, int]], level: float = 0.95) -> Interval:
    """Return the interval of a ToW, which is at most 100 and whose resamples are biased downwards.

    ToW is computed from absolute differences from the oracle, which cannot vary around 0: for a model as good as the oracle every resample
    is below 100, and so is every percentile. The lower end is the percentile's. The upper end is the ToW of the smallest differences
    that their own intervals allow; these intervals jointly contain the true differences with probability `level`.

    Args:
        value: The ToW, in percent.
        differences: For each set the score minus the oracle's in percent, the same in each resample (R,), and the number of people.
        level: Nominal coverage.
    """
    sizes = torch.stack([resampled.abs() for _, resampled, _ in differences])
    low = percentile_interval(value, 100 * (1 - sizes / 100).prod(0), min(people for *_, people in differences), level)
    if math.isnan(low.low):
        return low
    high = 100.0
    for difference, resampled, people in differences:
        own = percentile_interval(difference, resampled, people, level ** (1 / len(differences)))
        smallest = 0.0 if own.low <= 0 <= own.high else min(abs(own.low), abs(own.high), abs(difference))
        high *= 1 - smallest / 100
    return replace(low, low=min(low.low, value), high=high)
