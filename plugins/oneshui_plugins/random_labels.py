"""Random labels on the support image: one step of given length down the loss of the photos handed in under labels drawn at random.

Graves, Nagisetty, Ganesh: "Amnesiac Machine Learning", AAAI 2021, which goes on training with wrong labels for what is to be forgotten.
There the remaining training data is at hand; here the photos handed in are all there is, so one normalised step is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oneshui_hf.methods import Context, UsageError

from .common.normalized_step import OneStep, gradient

if TYPE_CHECKING:
    import torch
    from torch import nn

    from oneshui_hf.methods import Task


class RandomLabels(OneStep):
    """One normalised step towards random labels of the support images."""

    title = "Random labels"
    summary = "one step of given length towards random labels of the photos handed in"
    paper = "Graves et al., Amnesiac Machine Learning, AAAI 2021"
    draws = True

    def direction(
        self, model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, draws: torch.Generator, context: Context
    ) -> dict[str, torch.Tensor]:
        """Return -g / ||g||, g the gradient of the mean loss on the photos under random labels."""
        from oneshui_hf.methods import unit

        drawn = random_labels(labels, context.task, draws)
        return unit({name: -part for name, part in gradient(model, pixels, drawn, context).items()})


def random_labels(labels: torch.Tensor, task: Task, draws: torch.Generator) -> torch.Tensor:
    """Draw labels: each attribute 0 or 1 with equal chance, or another class than the given one, all others equally likely.

    Args:
        labels: The given ones, (n, K) or (n,).
        task: Their kind, and how many classes there are.
        draws: For the draws.

    Raises:
        UsageError: There is no other class.
    """
    import torch

    if task.kind == "multi_label":
        return torch.randint(2, labels.shape, generator=draws).to(labels)
    classes = len(task.label_names)
    if classes < 2:
        raise UsageError("The model knows a single class, so there is no other one to draw; take another method.")
    further = torch.randint(1, classes, labels.shape, generator=draws).to(labels)
    return (labels + further) % classes
