"""A linear probe: can people be identified by the features that a model computes from their photos?"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import UsageError


@dataclass(frozen=True)
class Probe:
    """How well people are identified on photos that the probe was not trained on.

    Attributes:
        accuracy: Share of photos whose person is identified, in percent.
        balanced_accuracy: Mean over people of the share of their photos, in percent; chance is 100 / people.
        chance: Accuracy of always predicting the person with the most training photos, in percent.
        people: Number of people, the classes of the probe.
        photos: Number of scored photos.
        left_out: Number of people with a single photo, which cannot be both trained on and scored.
    """

    accuracy: float
    balanced_accuracy: float
    chance: float
    people: int
    photos: int
    left_out: int


def identity_probe(features: torch.Tensor, identities: torch.Tensor, generator: torch.Generator, ridge: float = 1.0) -> Probe:
    """Return how well a one-vs-rest ridge classifier predicts identities from features.

    Half of each person's photos (rounded up) train it, and the other half is scored. Features are standardised with the training photos'
    mean and deviation.

    Args:
        features: Inputs of the model's classification head, (n, d).
        identities: The person on each photo, integers (n,).
        generator: Draws the halves.
        ridge: Weight of the squared norm, added to the sum of squared errors over photos; above 0.

    Raises:
        UsageError: There are not two people with two photos, or the ridge is not above 0.
    """
    if ridge <= 0:
        raise UsageError(f"The ridge of a probe must be above 0, not {ridge}.")
    people, person_index, sizes = identities.unique(return_inverse=True, return_counts=True)
    has_several = sizes > 1
    if has_several.sum() < 2:
        raise UsageError("A probe needs two photos of at least two people.")
    is_usable = has_several[person_index]
    targets = (has_several.cumsum(0) - 1)[person_index[is_usable]]  # people counted again, without those left out
    features = features[is_usable].double()
    count = int(has_several.sum())
    is_training = halve_photos(targets, generator)

    centre, scale = features[is_training].mean(0), features[is_training].std(0, correction=0)
    scaled = (features - centre) / torch.where(scale > 0, scale, 1)
    predicted = _ridge_scores(scaled[is_training], targets[is_training], count, scaled[~is_training], ridge).argmax(dim=1)
    scored = targets[~is_training]
    is_correct = (predicted == scored).double()
    hits = torch.zeros(count, dtype=torch.float64).index_add_(0, scored, is_correct)
    most_frequent = torch.bincount(targets[is_training], minlength=count).argmax()
    return Probe(
        accuracy=100 * is_correct.mean().item(),
        balanced_accuracy=100 * (hits / torch.bincount(scored, minlength=count)).mean().item(),
        chance=100 * (scored == most_frequent).double().mean().item(),
        people=count,
        photos=len(scored),
        left_out=len(people) - count,
    )


def halve_photos(identities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return which photos train, bool (n,): a random half of each person's photos, rounded up."""
    shuffled = torch.randperm(len(identities), generator=generator)
    order = shuffled[identities[shuffled].argsort(stable=True)]  # by person, in random order within a person
    _, sizes = identities[order].unique_consecutive(return_counts=True)
    starts = sizes.cumsum(0) - sizes
    rank = torch.arange(len(identities)) - starts.repeat_interleave(sizes)
    is_training = torch.zeros(len(identities), dtype=torch.bool)
    is_training[order] = rank < ((sizes + 1) // 2).repeat_interleave(sizes)
    return is_training


def _ridge_scores(training: torch.Tensor, targets: torch.Tensor, people: int, queries: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return the scores (m, people) of photos (m, d) from the ridge regression of one-hot people on centred photos (n, d).

    Solved in the primal for d weights or, with fewer photos than features, in the dual for n weights: the scores are equal.
    """
    one_hot = torch.zeros(len(training), people, dtype=training.dtype)
    one_hot[torch.arange(len(training)), targets] = 1
    intercept = one_hot.mean(0)  # features are centred, so it need not be subtracted from the targets
    if training.shape[1] <= len(training):
        gram = training.T @ training + ridge * torch.eye(training.shape[1], dtype=training.dtype)
        return queries @ torch.linalg.solve(gram, training.T @ one_hot) + intercept
    gram = training @ training.T + ridge * torch.eye(len(training), dtype=training.dtype)
    return queries @ training.T @ torch.linalg.solve(gram, one_hot) + intercept
