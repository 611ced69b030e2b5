"""Gradient ascent on the support image: one step of given length up the loss of the photos handed in.

`prepare` is optional and chooses the length on simulated requests; without it the default length is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oneshui_hf.methods import Context, DataAccess, Method, Needs, StepOptions, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from oneshui_hf.methods import Artefact, Simulated

DEFAULT_LENGTH = 1e-4  # share of the model's norm, where none was prepared


class GradientAscent(Method[StepOptions]):
    """One normalised step up the loss of the support images."""

    summary = "one step of given length up the loss of the photos handed in"
    paper = "-"
    needs = Needs(prepare=frozenset({"train", "val"}), apply=frozenset({"support"}))
    options = StepOptions
    prepares = "optional"

    def prepare(self, model: nn.Module, data: DataAccess, options: StepOptions, context: Context) -> Artefact:
        """Choose the length on simulated requests."""
        if options.calibration == 0:
            raise UsageError("Gradient ascent prepares nothing but its length, so --calibration must be at least 1.")
        from oneshui_hf.methods import Artefact, choose_length, norm, parameters

        def direction(request: Simulated) -> dict[str, torch.Tensor]:
            return _ascent(model, *request.support_set.batch(request.support, context.device), context)

        length, rows = choose_length(model, data, direction, options, context)
        return Artefact(values={"length": length / norm(parameters(model)).item()}, report={"calibration": rows})

    def apply(
        self,
        model: nn.Module,
        data: DataAccess,
        artefact: Artefact | None,
        options: StepOptions,
        context: Context,
    ) -> nn.Module:
        """Return theta + length * g / ||g||, g the gradient of the mean loss on the photos."""
        from oneshui_hf.methods import moved, norm, parameters

        request = data.support
        prepared = artefact.values["length"] if artefact else DEFAULT_LENGTH
        share = prepared if options.length is None else options.length
        length = share * norm(parameters(model)).item()
        context.report |= {"step_length": length, "step_share": share}
        return moved(model, _ascent(model, request.pixels, request.labels, context), length)


def _ascent(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, context: Context) -> dict[str, torch.Tensor]:
    """Return the unit direction in which the mean loss on the photos rises fastest."""
    import torch

    from oneshui_hf.methods import losses, unit

    named = dict(model.named_parameters())
    loss = losses(model(pixel_values=pixels).logits, labels, context.task.kind).mean()
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return unit({name: g for name, g in zip(named, gradients, strict=True) if g is not None})
