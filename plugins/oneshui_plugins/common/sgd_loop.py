"""The training loop of the methods that read training data at request time: plain SGD on a copy of the model.

    student = Student(model, options, context)
    for _ in student.epochs():
        for batch in student.batches("retain", data.retain):
            student.step(losses(student(batch.pixels), batch.labels, kind).mean())
    return student.model

The student is in eval mode, for every method: BatchNorm keeps its running statistics (a batch of a few people's photos would bias them for
everyone), and dropout, which would use torch's global random state, is off. Photos are not augmented.

Each process does all of this work with the same random numbers and ends with the same weights; nothing is shared between processes.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from oneshui_hf.methods import Context, OneshuiError, UsageError, generator, option

if TYPE_CHECKING:
    import torch
    from torch import nn

    from oneshui_hf.methods import FaceSet


@dataclass(frozen=True)
class SGDOptions:
    """Options of every method that trains with the loop of this module."""

    epochs: int = option(5, "Passes over the training data.", minimum=1, at="apply", search=(1, 10))
    lr: float = option(0.01, "Learning rate of SGD in the first epoch.", minimum=0, at="apply", search=(1e-4, 0.1))
    final_lr: float | None = option(
        None, "Learning rate in the last epoch, reached by a cosine schedule; --lr by default.", minimum=0, at="apply"
    )
    momentum: float = option(0.9, "Momentum of SGD.", minimum=0, maximum=1, at="apply")
    weight_decay: float = option(0.0, "Weight decay of SGD.", minimum=0, at="apply")
    batch_size: int = option(32, "Photos per step.", minimum=1, at="apply")


class Batch(NamedTuple):
    """Photos of one step.

    Attributes:
        positions: Their positions in the set (n,), on the CPU. With several sets, positions continue from one set to the next.
        pixels: Preprocessed photos (n, 3, S, S).
        labels: (n, K) or (n,).
    """

    positions: torch.Tensor
    pixels: torch.Tensor
    labels: torch.Tensor


class Student:
    """A copy of a model, with its optimizer and its batches.

    Attributes:
        model: The copy, in eval mode; the method returns it.
    """

    def __init__(self, model: nn.Module, options: SGDOptions, context: Context) -> None:
        import torch

        final_lr = options.lr if options.final_lr is None else options.final_lr
        if final_lr > options.lr:
            raise UsageError(f"--final-lr {final_lr:g} is above --lr {options.lr:g}; the learning rate can only decrease.")
        self.options, self.context, self.final_lr = options, context, final_lr
        self.model = copy.deepcopy(model).eval()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay
        )
        self.epoch = 0  # the current one
        self.losses: dict[str, list[float]] = {}  # of this epoch's steps, by name of the loss

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, K)."""
        return self.model(pixel_values=pixels).logits

    def epochs(self) -> Iterator[int]:
        """Set the learning rate of each epoch, yield its number, and report the mean of each loss in it."""
        history = self.context.report.setdefault("learning", [])  # every record uses "history" for the training
        for epoch in range(self.options.epochs):
            lr = cosine_schedule(self.options.lr, self.final_lr, epoch / max(1, self.options.epochs - 1))
            self.optimizer.param_groups[0]["lr"] = lr
            self.epoch, self.losses = epoch, {}
            yield epoch
            history.append({"epoch": epoch + 1, "lr": lr} | {name: sum(v) / len(v) for name, v in self.losses.items()})

    def batches(self, name: str, *sets: FaceSet) -> Iterator[Batch]:
        """Yield the photos of one or more sets together, once, in a random order that differs in each epoch."""
        label = f"Epoch {self.epoch + 1}/{self.options.epochs}, {name}"
        for positions in self.context.reporter.track(self._batch_positions(name, self.epoch, *sets), label):
            yield Batch(positions, *_load_batch(sets, positions, self.context.device))

    def cycle_batches(self, name: str, faces: FaceSet) -> Iterator[Batch]:
        """Yield the photos of a set again and again, each time in another order."""
        for cycle in itertools.count():
            for positions in self._batch_positions(name, cycle, faces):
                yield Batch(positions, *faces.batch(positions, self.context.device))

    def paired_batches(self, retain: FaceSet, forget: FaceSet) -> Iterator[tuple[Batch, Batch]]:
        """Yield, over all epochs, each batch of the retain set with a batch of the forget set, which is cycled."""
        forget_batches = self.cycle_batches("forget", forget)
        for _ in self.epochs():
            yield from zip(self.batches("retain", retain), forget_batches, strict=False)

    def _batch_positions(self, name: str, cycle: int, *sets: FaceSet) -> list[torch.Tensor]:
        """Return the positions of each batch, in a random order of this cycle."""
        import torch

        if not all(map(len, sets)):
            raise UsageError(
                f"The split has no photos to train on ({name}); train with at least one forget identity and one retain identity."
            )
        order = torch.randperm(sum(map(len, sets)), generator=generator(self.context.seed, "order", name, cycle))
        return [positions.sort().values for positions in order.split(self.options.batch_size)]  # sorted for sequential reads

    def step(self, loss: torch.Tensor, name: str = "loss", clip: float = math.inf) -> None:
        """Take one step of SGD down a loss.

        Args:
            loss: A scalar computed with this student.
            name: Name of the loss in the report.
            clip: Maximum gradient norm.

        Raises:
            OneshuiError: The gradient is not finite, so training has diverged.
        """
        import torch

        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        if not torch.isfinite(norm):
            raise OneshuiError(f"Training diverged in epoch {self.epoch + 1}: the gradient is not finite; try a smaller --lr.")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.setdefault(name, []).append(loss.item())


class Teacher:
    """A frozen copy of a model, in eval mode, that shares no weights with the student."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, K), without a graph."""
        import torch

        with torch.no_grad():
            return self.model(pixel_values=pixels).logits


def cosine_schedule(first: float, last: float, progress: float) -> float:
    """Return the value at a progress from 0 (first) to 1 (last), along half a cosine."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))


def _load_batch(sets: tuple[FaceSet, ...], positions: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixels and labels at sorted positions in the concatenation of several sets."""
    import torch

    parts, offset = [], 0
    for faces in sets:
        local = positions[(offset <= positions) & (positions < offset + len(faces))]
        if len(local):
            parts.append(faces.batch(local - offset, device))
        offset += len(faces)
    pixels, labels = zip(*parts, strict=True)
    return torch.cat(pixels), torch.cat(labels)
