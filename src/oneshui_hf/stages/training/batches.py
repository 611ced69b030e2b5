"""The batches of a training: which photos a step has, how processes and micro-batches share them, and how they are read and augmented."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ...data.augment import AugmentDraws, apply_augmentation, draw_augmentation
from ...data.face_set import FaceSet
from ...data.prefetch import pinned
from ...seeding import generator
from .phases import Phases


class MicroBatch(NamedTuple):
    """The photos of one forward and backward pass.

    Attributes:
        pixels: The model's input, float32 (m, 3, S, S), on a CPU; raw uint8 pixels for other devices, which do the rest.
        draws: How to augment raw pixels.
        labels: float32 (m, K) or int64 (m,).
        divisor: Of the sum of the photos' losses.
        counts: Whether the photos are part of the step. Otherwise they only keep this process in step with the others.
        ends_step: Whether the weights are updated afterwards.
    """

    pixels: torch.Tensor
    draws: AugmentDraws
    labels: torch.Tensor
    divisor: float
    counts: bool
    ends_step: bool


@dataclass(frozen=True)
class Batches:
    """The batches of this process.

    Attributes:
        faces: The training set.
        augmentation: `augment` of the recipe.
        seed: Seed of order and augmentation.
        step_size: Photos of a step per process.
        part: Largest number of photos of a forward pass.
        processes: Number of processes.
        process: Number of this one.
        device: Where it computes.
        phases: Measures reading and augmentation.
    """

    faces: FaceSet
    augmentation: str
    seed: int
    step_size: int
    part: int
    processes: int
    process: int
    device: torch.device
    phases: Phases

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[MicroBatch]:
        """Yield the batches of an epoch, without those before a step. The draws of a step do not depend on where it starts."""
        order = torch.randperm(len(self.faces), generator=generator(self.seed, "order", epoch))
        draws = generator(self.seed, "augment", epoch, self.process)
        for step, positions in enumerate(order.split(self.step_size * self.processes)):
            local, divisor = self._share(positions)
            drawn = draw_augmentation(len(local), self.augmentation, draws)
            if step < first:
                continue
            # Every process makes as many passes, since some layers exchange data in each.
            passes = math.ceil(math.ceil(len(positions) / self.processes) / self.part)
            parts = zip(local.tensor_split(passes), drawn.tensor_split(passes), strict=True)
            for number, (part, own) in enumerate(parts, start=1):
                counts = len(part) > 0
                chosen, own = (part, own) if counts else (local[:1], draw_augmentation(1, "none", draws))
                pixels = self._read(chosen, own)
                yield MicroBatch(pixels, own, self.faces.labels[chosen], divisor, counts, number == passes)

    def _share(self, positions: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Return this process's photos of a step, and the divisor of their summed loss.

        Gradients are averaged over processes. Each process divides by (photos of the step / processes), so the result is the mean over all
        photos of the step, in however many parts. A last step with fewer photos than processes repeats some, and counts them again.
        """
        if len(positions) < self.processes:
            positions = positions.repeat(math.ceil(self.processes / len(positions)))[: self.processes]
        return positions[self.process :: self.processes], len(positions) / self.processes

    def _read(self, positions: torch.Tensor, draws: AugmentDraws) -> torch.Tensor:
        with self.phases.measure("reading"):
            pixels = self.faces.raw_pixels(positions)
        if self.device.type != "cpu":
            return pinned(pixels, self.device)
        return self._augmented(pixels, draws)

    def to_device(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the model's input and the labels on the device, without waiting for the copy."""
        if self.device.type == "cpu":
            return batch.pixels, batch.labels
        labels = pinned(batch.labels, self.device).to(self.device, non_blocking=True)
        return self._augmented(batch.pixels.to(self.device, non_blocking=True), batch.draws), labels

    def _augmented(self, pixels: torch.Tensor, draws: AugmentDraws) -> torch.Tensor:
        with self.phases.measure("augmentation"):
            return self.faces.preprocess(apply_augmentation(pixels, draws))
