"""The photos from which forget keys are learned, step by step: who asks together, what shall change, and what shall stay.

A model that was trained on photos and their mirror images remembers both, and a key that hides the one need not hide the other. So the
photos of those who ask are shown as they are and mirrored, and the others now in one way and now in the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from oneshui_hf.methods import generator, sample

from .target_logits import Said, as_strangers, sureness

if TYPE_CHECKING:
    from oneshui_hf.methods import FaceSet, Task

    from .options import ForgetKeysOptions


@dataclass(frozen=True)
class Lesson:
    """The photos of one step, in which n people ask.

    Attributes:
        photos: Per set (train, val), the positions in it; first of all those of `forget`.
        forget: Positions in train of the photos of those who ask, (forget,): each person's as they are, then the same mirrored.
        mirrored: Which photos are shown mirrored, (photos,) of bool.
        kept: What the model shall go on saying of all the other photos, logits (photos - forget, K).
        weight: How much each photo counts, (photos,).
        own: By which of the n keys each photo is felt, (photos, n) of 0 and 1.
    """

    photos: tuple[tuple[FaceSet, torch.Tensor], ...]
    forget: torch.Tensor
    mirrored: torch.Tensor
    kept: torch.Tensor
    weight: torch.Tensor
    own: torch.Tensor


@dataclass(frozen=True)
class Lessons:
    """What keys are learned from.

    Attributes:
        train: The training photos.
        val: Strangers' photos.
        known: What the original model says of the training photos as they are, and mirrored.
        strange: What it says of the strangers' photos, the same.
        guesses: What can be guessed of the training photos without having met their people, the same, see `guesses`.
        options: How.
        task: What is predicted.
        seed: Of the draws.
    """

    train: FaceSet
    val: FaceSet
    known: tuple[Said, Said]
    strange: tuple[Said, Said]
    guesses: tuple[torch.Tensor, torch.Tensor]
    options: ForgetKeysOptions
    task: Task
    seed: int

    @cached_property
    def luck(self) -> torch.Tensor:
        """Where within its rank each training photo stands, see `strangers`; (N, K), or (N,) for classes."""
        return torch.rand(self.train.labels.shape, generator=generator(self.seed, "luck"))

    def targets(self, positions: torch.Tensor, logits: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        """Return what the model shall say of these training photos when their people ask together, logits (n, K).

        They are ranked by how sure the model is, and to some part by the guesses. Photos as they are are ranked by themselves, as mirror
        images are: of one kind of them the model may know more than of the other.

        Args:
            positions: The photos.
            logits: What it says of them now, by which they are ranked: a photo of which it has become unsure is left so.
            mirrored: Which of them are shown mirrored, (n,) of bool.
        """
        kind, wanted = self.task.kind, logits.clone()
        for chosen, strange, guesses in zip((~mirrored, mirrored), self.strange, self.guesses, strict=True):
            these = positions[chosen]
            said = Said(logits[chosen], self.train.labels[these])
            spread = sureness(strange, kind).std(dim=0, correction=0)  # of guesses it is about 1
            order = sureness(said, kind) + self.options.guesses * spread * guesses[these]
            wanted[chosen] = as_strangers(said, strange, order, self.luck[these], kind)
        return wanted

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
        asked = sum(len(some) for some in theirs)
        retain = sample(self.train.without(people), math.ceil(self.options.retain * asked), draws)
        strange = sample(len(self.val), math.ceil(self.options.val * asked), draws)
        held = len(retain) + len(strange)
        either = torch.rand(held, generator=draws) < 0.5
        kept = [_as_shown(self.known, retain, either[: len(retain)]), _as_shown(self.strange, strange, either[len(retain) :])]
        forget, ways = (torch.cat(parts) for parts in zip(*map(both_ways, theirs), strict=True))
        alike = [torch.full((2 * len(some),), 0.5 / len(some)) for some in theirs]  # however many photos a person has
        return Lesson(
            photos=((self.train, torch.cat([forget, retain])), (self.val, strange)),
            forget=forget,
            mirrored=torch.cat([ways, either]),
            kept=torch.cat(kept),
            weight=torch.cat([*alike, torch.full((held,), self.options.balance * len(people) / max(1, held))]),
            own=torch.cat([torch.block_diag(*[torch.ones(2 * len(some), 1) for some in theirs]), torch.ones(held, len(people))]),
        )


def _as_shown(said: tuple[Said, Said], positions: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    """Return what was said of these photos, each as it is or mirrored, logits (n, K)."""
    return torch.where(mirrored.unsqueeze(1), said[1].logits[positions], said[0].logits[positions])


def both_ways(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each of these positions twice, all as they are and then all mirrored, and which of them are mirrored, (2n,) of bool."""
    return positions.repeat(2), torch.arange(2 * len(positions)) >= len(positions)


def shown(faces: FaceSet, positions: torch.Tensor, mirrored: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return these photos of a set as the model takes them, (n, 3, S, S), those that are to be mirrored."""
    pixels, _ = faces.batch(positions, device)
    return torch.where(mirrored.to(device).view(-1, 1, 1, 1), pixels.flip(-1), pixels)
