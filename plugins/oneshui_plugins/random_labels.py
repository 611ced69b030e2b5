"""Random labels on the support images: one step of given length down their loss under randomly sampled labels.

Graves, Nagisetty, Ganesh: "Amnesiac Machine Learning", AAAI 2021, which continues training with wrong labels for the data to forget.
There the remaining training data is available. Here only the support images are, so one normalised step is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oneshui_hf.methods import Context, UsageError

from .common.normalized_step import NormalizedStepMethod, mean_loss_gradient

if TYPE_CHECKING:
    import torch
    from torch import nn

    from oneshui_hf.methods import Task, Weights


class RandomLabels(NormalizedStepMethod):
    """One normalised step towards random labels of the support images."""

    title = "Random labels"
    summary = "takes one step of given length towards random labels of the support images"
    paper = "Graves et al., Amnesiac Machine Learning, AAAI 2021"
    stochastic = True

    def direction(self, model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, rng: torch.Generator, context: Context) -> Weights:
        """Return -g / ||g||, with g the gradient of the mean loss on the support images under random labels."""
        from oneshui_hf.methods import unit

        noisy = resample_labels(labels, context.task, rng)
        return unit({name: -part for name, part in mean_loss_gradient(model, pixels, noisy, context).items()})


def resample_labels(labels: torch.Tensor, task: Task, rng: torch.Generator) -> torch.Tensor:
    """Sample labels: each attribute is 0 or 1 with equal probability; a class becomes another one, all equally likely.

    Args:
        labels: The given labels, (n, K) or (n,).
        task: Their kind, and the number of classes.
        rng: Source of randomness.

    Raises:
        UsageError: There is no other class.
    """
    import torch

    from .common.label_noise import sample_other_class

    if task.kind == "multi_label":
        return torch.randint(2, labels.shape, generator=rng).to(labels)
    if len(task.label_names) < 2:
        raise UsageError("The model has a single class, so no other class can be sampled; use another method.")
    return sample_other_class(labels, len(task.label_names), rng)
