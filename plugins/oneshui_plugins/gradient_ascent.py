"""Gradient ascent on the support image: one step of given length up the loss of the photos handed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oneshui_hf.methods import Context

from .common.normalized_step import OneStep, gradient

if TYPE_CHECKING:
    import torch
    from torch import nn


class GradientAscent(OneStep):
    """One normalised step up the loss of the support images."""

    title = "Gradient ascent"
    summary = "one step of given length up the loss of the photos handed in"
    paper = "-"
    in_demo = True

    def direction(
        self, model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, draws: torch.Generator, context: Context
    ) -> dict[str, torch.Tensor]:
        """Return g / ||g||, g the gradient of the mean loss on the photos: the direction in which it rises fastest."""
        from oneshui_hf.methods import unit

        return unit(gradient(model, pixels, labels, context))
