"""Training batches of keys: the identities of a step, their forget photos with target logits, and the photos whose logits must not change.

A model that was trained with mirroring memorises both versions of a photo, and a key that hides one need not hide the other. So each
forget photo occurs twice, original and mirrored, and every other photo in one of the two versions at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from oneshui_hf.methods import generator, sample

from .target_logits import LabelledLogits
from .targets import Targets

if TYPE_CHECKING:
    from oneshui_hf.methods import FaceSet, Task

    from .options import ForgetKeysOptions


@dataclass(frozen=True)
class Batch:
    """The photos of one step, which trains the keys of n identities.

    Attributes:
        photos: Per set (train, val), the positions in it; the first are those of `forget`.
        forget: Positions in train of the photos of the n identities, (forget,): of each identity all original, then all mirrored.
        mirrored: Which photos are mirrored, (photos,) of bool.
        preserved_logits: The original model's logits for all the other photos, which are their targets, (photos - forget, K).
        weight: Weight of each photo in the objective, (photos,).
        gradient_mask: Which of the n keys receive a gradient from each photo, (photos, n) of 0 and 1.
    """

    photos: tuple[tuple[FaceSet, torch.Tensor], ...]
    forget: torch.Tensor
    mirrored: torch.Tensor
    preserved_logits: torch.Tensor
    weight: torch.Tensor
    gradient_mask: torch.Tensor


@dataclass(frozen=True)
class TrainingData:
    """The data that keys are trained on.

    Attributes:
        train: The training photos.
        val: Photos of unseen identities.
        train_logits: The original model's logits for the training photos, original and mirrored.
        val_logits: The same for the photos of unseen identities.
        targets: The target logits of the training photos.
        options: Options of forget keys.
        task: What is predicted.
        seed: Seed of all random draws.
    """

    train: FaceSet
    val: FaceSet
    train_logits: tuple[LabelledLogits, LabelledLogits]
    val_logits: tuple[LabelledLogits, LabelledLogits]
    targets: Targets
    options: ForgetKeysOptions
    task: Task
    seed: int

    def target_logits(self, positions: torch.Tensor, logits: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        """Return the target logits of training photos whose identities are trained together, (n, K); see `Targets`."""
        return self.targets(positions, logits, mirrored)

    def sample_groups(self, cohort: Sequence[int], rounds: int, stream: str) -> list[list[int]]:
        """Return the identities of each step, as indices into the cohort: each once per round, in groups of random size.

        The logarithm of the size is uniform, so that an identity is in small groups as often as in large ones.

        Args:
            cohort: Identity numbers.
            rounds: How often each identity occurs.
            stream: The name of the random stream.
        """
        rng = generator(self.seed, stream, *cohort)
        largest = min(self.options.identities_per_step, len(cohort))
        groups: list[list[int]] = []
        for _ in range(rounds):
            remaining = torch.randperm(len(cohort), generator=rng).tolist()
            while remaining:
                size = int(math.exp(torch.rand((), generator=rng).item() * math.log(largest + 1)))
                groups.append(sorted(remaining[:size]))
                remaining = remaining[size:]
        return groups

    def sample_photos(self, identity: int, rng: torch.Generator) -> torch.Tensor:
        """Return positions in train of an identity's photos, at most `photos_per_identity`."""
        return sample(self.train.positions_of[identity], self.options.photos_per_identity, rng)

    def sample_batch(self, step: int, identities: Sequence[int]) -> Batch:
        """Return the batch of a step that trains the keys of these identities."""
        rng = generator(self.seed, "photos", step, *identities)
        own = [self.sample_photos(identity, rng) for identity in identities]
        count = sum(len(positions) for positions in own)
        retain = sample(self.train.positions_without(identities), math.ceil(self.options.retain_ratio * count), rng)
        val = sample(len(self.val), math.ceil(self.options.val_ratio * count), rng)
        others = len(retain) + len(val)
        flips = torch.rand(others, generator=rng) < 0.5
        preserved = [
            _select_version(self.train_logits, retain, flips[: len(retain)]),
            _select_version(self.val_logits, val, flips[len(retain) :]),
        ]
        forget, forget_mirrored = (torch.cat(parts) for parts in zip(*map(repeat_mirrored, own), strict=True))
        own_weights = [torch.full((2 * len(some),), 0.5 / len(some)) for some in own]  # the same sum for each identity
        other_weights = torch.full((others,), self.options.preservation_weight * len(identities) / max(1, others))
        own_mask = torch.block_diag(*[torch.ones(2 * len(some), 1) for some in own])
        return Batch(
            photos=((self.train, torch.cat([forget, retain])), (self.val, val)),
            forget=forget,
            mirrored=torch.cat([forget_mirrored, flips]),
            preserved_logits=torch.cat(preserved),
            weight=torch.cat([*own_weights, other_weights]),
            gradient_mask=torch.cat([own_mask, torch.ones(others, len(identities))]),
        )


def _select_version(versions: tuple[LabelledLogits, LabelledLogits], positions: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    """Return the logits of these photos, each of its original or its mirrored version, (n, K)."""
    return torch.where(mirrored.unsqueeze(1), versions[1].logits[positions], versions[0].logits[positions])


def repeat_mirrored(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return these positions twice, first original and then mirrored, and which of them are mirrored, (2n,) of bool."""
    return positions.repeat(2), torch.arange(2 * len(positions)) >= len(positions)


def load_pixel_values(faces: FaceSet, positions: torch.Tensor, mirrored: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return model inputs of these photos of a set, (n, 3, S, S), flipped horizontally where `mirrored`."""
    pixels, _ = faces.batch(positions, device)
    return torch.where(mirrored.to(device).view(-1, 1, 1, 1), pixels.flip(-1), pixels)
