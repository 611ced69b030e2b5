"""Rehearsals: simulated requests on which a model that has forgotten is judged, while the training data is there to judge by."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from ..data.pixels import FaceSet
from ..errors import OneshuiError
from ..metrics.functional import tug_of_war
from ..metrics.summary import score
from ..models.outputs import predict
from .contract import Context
from .requests import Simulated, sample


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
