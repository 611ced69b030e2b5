"""Simulated requests from training identities, and scoring of unlearned models on them while training data is available."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..data.face_set import FaceSet
from ..data.schema import Task
from ..errors import OneshuiError, UsageError
from ..metrics.functional import is_scorable, score, tug_of_war
from ..models.outputs import predict
from ..models.weights import require_finite
from .base import Context, DataAccess, Method
from .requests import Request

if TYPE_CHECKING:
    from .artefact import Artefact


@dataclass(frozen=True)
class SimulatedRequest:
    """A forget request for training identities.

    Attributes:
        people: Identity numbers.
        support_set: The set of the support images: reserved photos, which the model has not seen, or the training set.
        support: Positions of the support images in `support_set`, one per identity.
        forget: Positions of the other photos of these identities in the training set.
    """

    people: tuple[int, ...]
    support_set: FaceSet
    support: torch.Tensor
    forget: torch.Tensor

    def first(self, count: int, train: FaceSet) -> SimulatedRequest:
        """Return the request of the first identities of this one.

        Args:
            count: Their number.
            train: The training set.
        """
        people = self.people[:count]
        is_theirs = torch.isin(train.identities[self.forget], torch.tensor(people))
        return SimulatedRequest(people, self.support_set, self.support[:count], self.forget[is_theirs])


def simulate(train: FaceSet, sizes: tuple[int, int], generator: torch.Generator, *, unseen: bool) -> Iterator[SimulatedRequest]:
    """Yield one epoch of simulated requests: each eligible identity occurs in one request.

    Identities in `train.excluded_from_simulation` are not eligible.

    Args:
        train: The training set.
        sizes: Smallest and largest number of identities of a request; the size of each request is drawn between them.
        generator: Source of randomness.
        unseen: Take support images from the reserved photos, as in a real request; only identities with a reserved photo are eligible.
            Otherwise the support image is a training photo, and identities with a single photo are not eligible: a photo cannot be both
            support and forget.

    Raises:
        UsageError: No identity is eligible.
    """
    forgettable = train.positions_of
    if unseen:
        source = train.reserved
        reserved = source.positions_of if source is not None else {}
        eligible = sorted(p for p in reserved if p in forgettable and p not in train.excluded_from_simulation)
        reason = (
            "no identity that may be simulated has a reserved photo in the split; "
            "train with a larger --reserve-supports, or use --no-unseen-support"
        )
    else:
        source = train
        eligible = sorted(p for p, photos in forgettable.items() if len(photos) >= 2 and p not in train.excluded_from_simulation)
        reason = "no training identity has two photos"
    if not eligible or source is None:
        raise UsageError(f"No request can be simulated: {reason}.")

    order = [eligible[i] for i in torch.randperm(len(eligible), generator=generator).tolist()]
    while order:
        size = int(torch.randint(sizes[0], sizes[1] + 1, (), generator=generator))
        people, order = order[:size], order[size:]
        support, forget = [], []
        for person in people:
            candidates = source.positions_of[person]
            chosen = candidates[torch.randint(len(candidates), (), generator=generator)]
            support.append(chosen)
            photos = forgettable[person]
            forget.append(photos if unseen else photos[photos != chosen])
        yield SimulatedRequest(tuple(people), source, torch.stack(support), torch.cat(forget))


def scorable_requests(requests: Iterable[SimulatedRequest], train: FaceSet, task: Task) -> list[SimulatedRequest]:
    """Return the requests whose forget photos have a score; all of them if none has.

    mAP is unknown where every label is constant, as on the few photos of one person.
    """
    found = list(requests)
    return [request for request in found if is_scorable(train.labels[request.forget], task)] or found


def unlearn_simulated(
    method: Method[Any],
    model: nn.Module,
    sets: Mapping[str, FaceSet],
    request: SimulatedRequest,
    artefact: Artefact | None,
    options: Any,
    context: Context,
) -> nn.Module:
    """Return the unlearned model of a simulated request.

    Args:
        method: The method.
        model: The original model.
        sets: The sets of the run; train is the one that the request was simulated from.
        request: The simulated request.
        artefact: What the method prepared.
        options: Of the method.
        context: For this request alone; the method may add to its report.

    Raises:
        OneshuiError: The method fails, or a weight of the new model is not finite.
    """
    train = sets["train"]
    pixels, labels = request.support_set.batch(request.support, context.device)
    granted: dict[str, Any] = {
        **sets,
        "support": Request(pixels, tuple(train.people[person] for person in request.people), labels, labels_given=True),
        "forget": train.subset(request.forget),
        "retain": train.subset(train.positions_without(request.people)),
    }
    unlearned = method.apply(model, DataAccess(granted, type(method).needs.apply), artefact, options, context)
    require_finite("the unlearned model", unlearned, "this setting is too strong")
    return unlearned


def sample(positions: int | torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Return up to `count` of these positions (or of range(positions)), drawn without replacement, in ascending order."""
    if isinstance(positions, int):
        positions = torch.arange(positions)
    return positions[torch.randperm(len(positions), generator=generator)[:count].sort().values]


class SimulatedRequestTrial:
    """One simulated request, and the photos on which a model that has unlearned it is scored.

    Attributes:
        request: The simulated request.
        sets: The photos: forget (training photos of the request's identities), retain (of other training identities), val (unseen
            identities).
        original_scores: Score of the original model on each set.
    """

    def __init__(
        self,
        model: nn.Module,
        train: FaceSet,
        val: FaceSet,
        request: SimulatedRequest,
        context: Context,
        generator: torch.Generator,
        max_photos: int,
        exclude: Collection[int] = (),
    ) -> None:
        """Draw at most `max_photos` photos per set, and score the original model on them.

        Args:
            model: The original model.
            train: The training set.
            val: Photos of unseen identities.
            request: The simulated request.
            context: Of the preparation.
            generator: Source of randomness.
            max_photos: Most photos per set.
            exclude: Identities that retain excludes, in addition to those of the request.

        Raises:
            OneshuiError: No training identity is left for retain, or no label varies over the photos of a set, so that it has no score.
        """
        retain = train.positions_without({*request.people, *exclude})
        if len(retain) == 0:
            raise OneshuiError(
                f"A simulated request of {len(request.people)} takes in all training people, so no retain set is left; "
                "train with fewer people to forget, or on more people."
            )
        self.request, self.context = request, context
        candidates = {"forget": (train, request.forget), "retain": (train, retain), "val": (val, torch.arange(len(val)))}
        self.sets = {}
        for name, (faces, positions) in candidates.items():
            drawn = faces.subset(sample(positions, max_photos, generator))
            self.sets[name] = drawn if is_scorable(drawn.labels, context.task) else faces.subset(positions)
            if not is_scorable(self.sets[name].labels, context.task):
                raise OneshuiError(
                    f"No label varies over the {name} photos of a simulated request, so mAP is unknown there; train with labels that vary, "
                    "or with a larger --forget, which makes simulated requests larger."
                )
        self.original_scores = self._scores(model)

    def score(self, candidate: nn.Module) -> dict[str, float]:
        """Return the scores of a model on each set, and their tug of war (ToW).

        No oracle exists for a simulated request. The original model's score on val replaces the oracle's on forget, and the original
        model's own scores replace the oracle's on retain and val.
        """
        return self._with_tow(self._scores(candidate))

    def baseline(self) -> dict[str, float]:
        """Return the same for the original model, which has unlearned nothing."""
        return self._with_tow(self.original_scores)

    def _with_tow(self, scores: dict[str, float]) -> dict[str, float]:
        original = self.original_scores
        return scores | {"tow": tug_of_war(scores, original | {"forget": original["val"]})}

    def _scores(self, candidate: nn.Module) -> dict[str, float]:
        accelerator, task = self.context.accelerator, self.context.task
        return {name: score(predict(candidate, faces, accelerator), faces.labels, task) for name, faces in self.sets.items()}


def mean_scores(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each score over the rows."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def retain_drop(scores: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """Return how many points of score the retain set lost."""
    return baseline["retain"] - scores["retain"]
