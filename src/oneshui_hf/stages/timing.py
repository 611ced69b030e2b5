"""The time of one photo on this machine, measured for the estimates of `oneshui prepare --dry-run` and `oneshui benchmark --dry-run`."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn

from ..data.schema import TaskKind
from ..memory import PeakMemory
from ..models.outputs import losses

TURNS = 2  # the last one is measured: the first one includes one-time initialisation


@dataclass(frozen=True)
class PhotoTiming:
    """The cost of one photo.

    Attributes:
        forward: Seconds of a forward pass without gradients, per photo.
        backward: Seconds of a forward and a backward pass, per photo.
        peak_mb: Peak memory of both passes on the whole batch in MB; None if the system does not report it.
    """

    forward: float
    backward: float
    peak_mb: int | None


def time_per_photo(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, kind: TaskKind) -> PhotoTiming:
    """Time a model on one batch. The model is left unchanged, without gradients.

    Args:
        model: A classifier.
        pixels: A batch on the model's device, float (n, 3, side, side).
        labels: Its labels on the same device.
        kind: The task's kind, which decides the loss.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for _ in range(TURNS):
        with PeakMemory(pixels.device) as peak:
            started = now(pixels.device)
            with torch.no_grad():
                model(pixel_values=pixels)
            between = now(pixels.device)
            torch.autograd.grad(losses(model(pixel_values=pixels).logits, labels, kind).mean(), parameters, allow_unused=True)
            ended = now(pixels.device)
    return PhotoTiming((between - started) / len(pixels), (ended - between) / len(pixels), peak.mb)


def now(device: torch.device) -> float:
    """Return the time in seconds, after everything that a GPU was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # otherwise only the launch of the kernels is timed
    return time.perf_counter()
