"""The one training loop that the methods share which read training data at request time: plain SGD on a copy of the model.

    student = Student(model, options, context)
    for _ in student.epochs():
        for batch in student.batches("retain", data.retain):
            student.descend(losses(student(batch.pixels), batch.labels, kind).mean())
    return student.model

The student learns in eval mode, for every method alike: BatchNorm keeps its running statistics (a batch of a few people's photos would
spoil them for everybody) and dropout, whose draws are the library's own, does not act. Photos are not augmented.

Each process does the whole of this work, from the same draws, and ends with the same weights; nothing is shared.
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
    """Options of every method that trains by the loop of this module."""

    epochs: int = option(5, "Passes over the training data.", minimum=1, at="apply", search=(1, 10))
    lr: float = option(0.01, "Learning rate of SGD, in the first epoch.", minimum=0, at="apply", search=(1e-4, 0.1))
    final_lr: float | None = option(
        None, "Learning rate in the last epoch, reached by a cosine; the same as in the first by default.", minimum=0, at="apply"
    )
    momentum: float = option(0.9, "Momentum of SGD.", minimum=0, maximum=1, at="apply")
    weight_decay: float = option(0.0, "Weight decay of SGD.", minimum=0, at="apply")
    batch_size: int = option(32, "Photos a step.", minimum=1, at="apply")


class Batch(NamedTuple):
    """Photos of one step.

    Attributes:
        positions: Where they are in their set (n,), on the CPU; over several sets the count goes on from one to the next.
        pixels: Preprocessed photos (n, 3, S, S).
        labels: (n, K) or (n,).
    """

    positions: torch.Tensor
    pixels: torch.Tensor
    labels: torch.Tensor


class Student:
    """A copy of a model, and how it learns.

    Attributes:
        model: The copy, in eval mode; what the method returns.
    """

    def __init__(self, model: nn.Module, options: SGDOptions, context: Context) -> None:
        import torch

        final_lr = options.lr if options.final_lr is None else options.final_lr
        if final_lr > options.lr:
            raise UsageError(f"--final-lr {final_lr:g} is above --lr {options.lr:g}; the learning rate can only fall.")
        self.options, self.context, self.final_lr = options, context, final_lr
        self.model = copy.deepcopy(model).eval()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay
        )
        self.epoch = 0  # the one that runs
        self.values: dict[str, list[float]] = {}  # of this epoch's steps, by what was minimised

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, K)."""
        return self.model(pixel_values=pixels).logits

    def epochs(self) -> Iterator[int]:
        """Yield each epoch's number, its learning rate set, and report the mean of what was minimised in it."""
        told = self.context.report.setdefault("learning", [])  # "history" is that of the training, in every record
        for epoch in range(self.options.epochs):
            rate = cosine(self.options.lr, self.final_lr, epoch / max(1, self.options.epochs - 1))
            self.optimizer.param_groups[0]["lr"] = rate
            self.epoch, self.values = epoch, {}
            yield epoch
            told.append({"epoch": epoch + 1, "lr": rate} | {name: sum(v) / len(v) for name, v in self.values.items()})

    def batches(self, name: str, *sets: FaceSet) -> Iterator[Batch]:
        """Yield the photos of one or more sets together, once, in an order of this epoch's own."""
        label = f"Epoch {self.epoch + 1}/{self.options.epochs}, {name}"
        for positions in self.context.reporter.track(self._order(name, self.epoch, *sets), label):
            yield Batch(positions, *_gather(sets, positions, self.context.device))

    def cycled(self, name: str, faces: FaceSet) -> Iterator[Batch]:
        """Yield the photos of a set over and over, each time in another order."""
        for turn in itertools.count():
            for positions in self._order(name, turn, faces):
                yield Batch(positions, *faces.batch(positions, self.context.device))

    def _order(self, name: str, turn: int, *sets: FaceSet) -> list[torch.Tensor]:
        """Return the positions of each step, drawn for this turn."""
        import torch

        if not all(map(len, sets)):
            raise UsageError(f"The split has no photos to learn from ({name}); train with people to forget, and with others who stay.")
        order = torch.randperm(sum(map(len, sets)), generator=generator(self.context.seed, "order", name, turn))
        return [positions.sort().values for positions in order.split(self.options.batch_size)]  # sorted: read in one sweep

    def descend(self, loss: torch.Tensor, name: str = "loss", clip: float = math.inf) -> None:
        """Take one step of SGD down a loss.

        Args:
            loss: A scalar made with this student.
            name: What it is, for the report.
            clip: Norm that the gradient is shortened to where it is longer.

        Raises:
            OneshuiError: The gradient is not finite, so training has diverged.
        """
        import torch

        loss.backward()
        length = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        if not torch.isfinite(length):
            raise OneshuiError(f"Training diverged in epoch {self.epoch + 1}: the gradient is no longer finite; try a smaller --lr.")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.values.setdefault(name, []).append(loss.item())


class Teacher:
    """A copy of a model that is asked and never changes: frozen, in eval mode, sharing no weight with the student."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, K), without a graph."""
        import torch

        with torch.no_grad():
            return self.model(pixel_values=pixels).logits


def cosine(first: float, last: float, progress: float) -> float:
    """Return the rate after a share of the way from first to last, along half a cosine."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))


def _gather(sets: tuple[FaceSet, ...], positions: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixels and labels at sorted positions that count through several sets, one after the other."""
    import torch

    parts, first = [], 0
    for faces in sets:
        inside = positions[(first <= positions) & (positions < first + len(faces))]
        if len(inside):
            parts.append(faces.batch(inside - first, device))
        first += len(faces)
    pixels, labels = zip(*parts, strict=True)
    return torch.cat(pixels), torch.cat(labels)
