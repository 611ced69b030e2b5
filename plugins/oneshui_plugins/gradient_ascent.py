"""Gradient ascent on the support images: one step of given length up their loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oneshui_hf.methods import Context

from .common.normalized_step import NormalizedStepMethod, mean_loss_gradient

if TYPE_CHECKING:
    import torch
    from torch import nn

    from oneshui_hf.methods import Weights


class GradientAscent(NormalizedStepMethod):
    """One normalised step up the loss of the support images."""

    title = "Gradient ascent"
    summary = "takes one step of given length up the loss of the support images"
    paper = "-"
    in_demo = True

    def direction(self, model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, rng: torch.Generator, context: Context) -> Weights:
        """Return g / ||g||, with g the gradient of the mean loss on the support images: the direction of steepest ascent."""
        from oneshui_hf.methods import unit

        return unit(mean_loss_gradient(model, pixels, labels, context))
