"""A linear probe: whether people can be told apart by the features that a model gives their photos."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import UsageError


@dataclass(frozen=True)
class Probe:
    """How well people are recognised on photos that the probe was not trained on.

    Attributes:
        accuracy: Share of photos whose person is named, in percent.
        balanced_accuracy: Mean over people of the share of their photos, in percent; chance is 100 / people.
        chance: The accuracy of always naming the person with the most training photos, in percent.
        people: How many were told apart.
        photos: How many photos were scored.
        left_out: People with a single photo, which cannot be both trained on and scored.
    """

    accuracy: float
    balanced_accuracy: float
    chance: float
    people: int
    photos: int
    left_out: int


def identity_probe(features: torch.Tensor, identities: torch.Tensor, generator: torch.Generator, ridge: float = 1.0) -> Probe:
    """Return how well a ridge classifier, one against all, reads identities off features.

    Half of each person's photos train it (the larger half of an odd number), the other half is scored. Features are standardised by the
    training photos.

    Args:
        features: What the head of the model takes, (n, d).
        identities: The person of each photo, integers (n,).
        generator: Decides the halves.
        ridge: Weight of the squared norm beside the sum of squared errors over photos; above 0.

    Raises:
        UsageError: There are not two people with two photos, or the ridge is not above 0.
    """
    if ridge <= 0:
        raise UsageError(f"The ridge of a probe must be above 0, not {ridge}.")
    people, owner, sizes = identities.unique(return_inverse=True, return_counts=True)
    several = sizes > 1
    if several.sum() < 2:
        raise UsageError("A probe needs two photos of at least two people.")
    usable = several[owner]
    owner = (several.cumsum(0) - 1)[owner[usable]]  # people counted anew, without those left out
    features = features[usable].double()
    count = int(several.sum())
    training = halve_photos(owner, generator)

    centre, scale = features[training].mean(0), features[training].std(0, correction=0)
    scaled = (features - centre) / torch.where(scale > 0, scale, 1)
    guessed = _ridge_scores(scaled[training], owner[training], count, scaled[~training], ridge).argmax(dim=1)
    truth = owner[~training]
    right = (guessed == truth).double()
    hits = torch.zeros(count, dtype=torch.float64).index_add_(0, truth, right)
    commonest = torch.bincount(owner[training], minlength=count).argmax()
    return Probe(
        accuracy=100 * right.mean().item(),
        balanced_accuracy=100 * (hits / torch.bincount(truth, minlength=count)).mean().item(),
        chance=100 * (truth == commonest).double().mean().item(),
        people=count,
        photos=len(truth),
        left_out=len(people) - count,
    )


def halve_photos(identities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return which photos train, bool (n,): a random half of each person's, rounded up."""
    shuffled = torch.randperm(len(identities), generator=generator)
    order = shuffled[identities[shuffled].argsort(stable=True)]  # by person, at random within
    _, sizes = identities[order].unique_consecutive(return_counts=True)
    starts = sizes.cumsum(0) - sizes
    rank = torch.arange(len(identities)) - starts.repeat_interleave(sizes)
    chosen = torch.zeros(len(identities), dtype=torch.bool)
    chosen[order] = rank < ((sizes + 1) // 2).repeat_interleave(sizes)
    return chosen


def _ridge_scores(seen: torch.Tensor, owner: torch.Tensor, people: int, asked: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return the scores (m, people) of photos (m, d) from the ridge regression of one-hot people on centred photos (n, d).

    Solved for the d weights or, where there are fewer photos than features, for the n dual ones: the same scores.
    """
    truth = torch.zeros(len(seen), people, dtype=seen.dtype)
    truth[torch.arange(len(seen)), owner] = 1
    mean = truth.mean(0)  # the intercepts; the features being centred, it need not be taken off the targets
    if seen.shape[1] <= len(seen):
        gram = seen.T @ seen + ridge * torch.eye(seen.shape[1], dtype=seen.dtype)
        return asked @ torch.linalg.solve(gram, seen.T @ truth) + mean
    gram = seen @ seen.T + ridge * torch.eye(len(seen), dtype=seen.dtype)
    return asked @ seen.T @ torch.linalg.solve(gram, truth) + mean
