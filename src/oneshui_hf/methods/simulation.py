"""Rehearsals: simulated requests on which a model that has forgotten is judged, while the training data is there to judge by."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..data.face_set import FaceSet
from ..errors import OneshuiError, UsageError
from ..metrics.functional import score, tug_of_war
from ..models.outputs import predict
from .base import Context


class Rehearsal:
    """One simulated request, and the photos on which forgetting it is judged.

    Attributes:
        request: The request.
        sets: What is judged on: its people's training photos (forget), those of others (retain), strangers (val).
        before: The original model's scores on them.
    """

    def __init__(
        self,
        model: nn.Module,
        train: FaceSet,
        val: FaceSet,
        request: Simulated,
        context: Context,
        draws: torch.Generator,
        photos: int,
        besides: Collection[int] = (),
    ) -> None:
        """Draw at most `photos` photos of each kind, of others than `besides`, and measure the original model on them.

        Raises:
            OneshuiError: The request takes in all training people.
        """
        others = train.without({*request.people, *besides})
        if len(others) == 0:
            raise OneshuiError(
                f"A simulated request of {len(request.people)} takes in all training people, so nobody is left to judge the step by; "
                "train with fewer people to forget, or on more people."
            )
        self.request, self.context = request, context
        self.sets = {
            "forget": train.subset(sample(request.forget, photos, draws)),
            "retain": train.subset(sample(others, photos, draws)),
            "val": val.subset(sample(len(val), photos, draws)),
        }
        self.before = self._scores(model)

    def judge(self, candidate: nn.Module) -> dict[str, float]:
        """Return a model's scores and their ToW.

        The level of strangers (the original's score on val) stands in for the oracle's on the forget images, and the original's own scores
        for the oracle's on retain and val.
        """
        scores = self._scores(candidate)
        return scores | {"tow": tug_of_war(scores, self.before | {"forget": self.before["val"]})}

    def nothing(self) -> dict[str, float]:
        """Return the same for the original model."""
        return self.before | {"tow": tug_of_war(self.before, self.before | {"forget": self.before["val"]})}

    def _scores(self, candidate: nn.Module) -> dict[str, float]:
        accelerator, task = self.context.accelerator, self.context.task
        return {name: score(predict(candidate, faces, accelerator), faces.labels, task) for name, faces in self.sets.items()}


def mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of every number."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def damage(row: Mapping[str, float], nothing: Mapping[str, float]) -> float:
    """Return how many points of score the others lost."""
    return nothing["retain"] - row["retain"]


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
