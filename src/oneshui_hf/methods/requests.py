"""Requests to be forgotten: real ones, and those simulated from training people while their photos are still there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..data.pixels import FaceSet
from ..errors import UsageError


@dataclass(frozen=True)
class Request:
    """What is handed in: photos, and what is known of them.

    Attributes:
        pixels: Preprocessed photos (n, 3, S, S).
        people: Per photo the identity key, or None where it is not known.
        labels: Per photo the labels as the task has them, (n, K) or (n,); the model's own guess where they were not given.
        labels_given: Whether they were given.
        strangers: Whether the model is known never to have seen them: an oracle, which is asked so that attackers can compare.
    """

    pixels: torch.Tensor
    people: tuple[str | None, ...]
    labels: torch.Tensor
    labels_given: bool
    strangers: bool = False

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class Simulated:
    """A request as it could come, made from training people.

    Attributes:
        people: Identity numbers.
        support_set: Where the handed-in photos are from: reserved ones that the model has not seen, or training photos.
        support: Their positions in `support_set`, one a person.
        forget: Positions in the training set of these people's other photos.
    """

    people: tuple[int, ...]
    support_set: FaceSet
    support: torch.Tensor
    forget: torch.Tensor


def simulate(train: FaceSet, sizes: tuple[int, int], generator: torch.Generator, *, unseen: bool) -> Iterator[Simulated]:
    """Yield one epoch of requests, in which every person who can ask does so once.

    Args:
        train: The training set.
        sizes: Fewest and most people of a request; each request draws its size between them.
        generator: For the draws.
        unseen: Hand in a reserved photo, as a real request does; only people who have one can ask then. Otherwise the photo handed in
            is one of the training photos, and people with a single one never ask: a photo is not both support and forget.
            Those whom the split spares never ask either.

    Raises:
        UsageError: Nobody can ask.
    """
    forgettable = train.positions_of
    if unseen:
        source = train.reserved
        reserved = source.positions_of if source is not None else {}
        able = sorted(p for p in reserved if p in forgettable and p not in train.spared)
        missing = "nobody who may ask has a photo reserved in the split; train with a larger --reserve-supports, or use --no-unseen-support"
    else:
        source = train
        able = sorted(p for p, photos in forgettable.items() if len(photos) >= 2 and p not in train.spared)
        missing = "no training person has two photos"
    if not able or source is None:
        raise UsageError(f"No request can be simulated: {missing}.")

    order = [able[i] for i in torch.randperm(len(able), generator=generator).tolist()]
    while order:
        size = int(torch.randint(sizes[0], sizes[1] + 1, (), generator=generator))
        people, order = order[:size], order[size:]
        support, forget = [], []
        for person in people:
            photos = source.positions_of[person]
            pick = photos[torch.randint(len(photos), (), generator=generator)]
            support.append(pick)
            others = forgettable[person]
            forget.append(others if unseen else others[others != pick])
        yield Simulated(tuple(people), source, torch.stack(support), torch.cat(forget))


def sample(positions: int | torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Return up to `count` of these positions (or of range(positions)), drawn without replacement, in order."""
    if isinstance(positions, int):
        positions = torch.arange(positions)
    return positions[torch.randperm(len(positions), generator=generator)[:count].sort().values]
