"""The photos from which forget keys are learned, step by step: who asks together, what shall change, and what shall stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from oneshui_hf.methods import generator, sample

from .strangers import Said, as_strangers

if TYPE_CHECKING:
    from oneshui_hf.methods import FaceSet, Task

    from .options import ForgetKeysOptions


@dataclass(frozen=True)
class Lesson:
    """The photos of one step, in which n people ask.

    Attributes:
        photos: Per set (train, val), the positions in it; first of all those of `forget`.
        forget: Positions in train of the photos of those who ask, (forget,).
        kept: What the model shall go on saying of all the other photos, logits (photos - forget, K).
        weight: How much each photo counts, (photos,).
        own: By which of the n keys each photo is felt, (photos, n) of 0 and 1.
    """

    photos: tuple[tuple[FaceSet, torch.Tensor], ...]
    forget: torch.Tensor
    kept: torch.Tensor
    weight: torch.Tensor
    own: torch.Tensor


@dataclass(frozen=True)
class Lessons:
    """What keys are learned from.

    Attributes:
        train: The training photos.
        val: Strangers' photos.
        known: What the original model says of the training photos.
        strange: What it says of the strangers' photos.
        options: How.
        task: What is predicted.
        seed: Of the draws.
    """

    train: FaceSet
    val: FaceSet
    known: Said
    strange: Said
    options: ForgetKeysOptions
    task: Task
    seed: int

    @cached_property
    def luck(self) -> torch.Tensor:
        """Where within its rank each training photo stands, see `strangers`; (N, K), or (N,) for classes."""
        return torch.rand(self.known.labels.shape, generator=generator(self.seed, "luck"))

    def targets(self, positions: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return what the model shall say of these training photos when their people ask together, logits (n, K).

        Args:
            positions: The photos.
            logits: What it says of them now, by which they are ranked: a photo of which it has become unsure is left so.
        """
        return as_strangers(Said(logits, self.known.labels[positions]), self.strange, self.luck[positions], self.task.kind)

    def groups(self, cohort: Sequence[int], rounds: int, drawn_for: str) -> list[list[int]]:
        """Return who asks in each step, as places in the cohort: everybody once in each round, in groups of changing size.

        The logarithm of the size is drawn evenly, so that a person asks as often with few others as with many.
        """
        draws = generator(self.seed, drawn_for, *cohort)
        most = min(self.options.together, len(cohort))
        groups: list[list[int]] = []
        for _ in range(rounds):
            left = torch.randperm(len(cohort), generator=draws).tolist()
            while left:
                size = int(math.exp(torch.rand((), generator=draws).item() * math.log(most + 1)))
                groups.append(sorted(left[:size]))
                left = left[size:]
        return groups

    def photos_of(self, person: int, draws: torch.Generator) -> torch.Tensor:
        """Return positions in train of the photos of a person (identity number), at most so many as there are to be in a step."""
        return sample(self.train.positions_of[person], self.options.photos, draws)

    def lesson(self, number: int, people: Sequence[int]) -> Lesson:
        """Return the photos of a step in which these people (identity numbers) ask."""
        draws = generator(self.seed, "photos", number, *people)
        theirs = [self.photos_of(person, draws) for person in people]
        forget = torch.cat(theirs)
        retain = sample(self.train.without(people), math.ceil(self.options.retain * len(forget)), draws)
        strange = sample(len(self.val), math.ceil(self.options.val * len(forget)), draws)
        held = len(retain) + len(strange)
        alike = [torch.full((len(some),), 1 / len(some)) for some in theirs]  # however many photos a person has
        return Lesson(
            photos=((self.train, torch.cat([forget, retain])), (self.val, strange)),
            forget=forget,
            kept=torch.cat([self.known.logits[retain], self.strange.logits[strange]]),
            weight=torch.cat([*alike, torch.full((held,), self.options.balance * len(people) / max(1, held))]),
            own=torch.cat([torch.block_diag(*[torch.ones(len(some), 1) for some in theirs]), torch.ones(held, len(people))]),
        )
