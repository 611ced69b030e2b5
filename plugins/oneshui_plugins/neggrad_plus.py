"""NegGrad+: descend the loss of the retain set and ascend, with a small weight, the loss of the forget set.

Kurmanji, Triantafillou, Hayes, Triantafillou, "Towards Unbounded Machine Unlearning", NeurIPS 2023, section 4 ("NegGrad+").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from oneshui_hf.methods import Context, DataAccess, Method, Needs, option

from .common.sgd_loop import SGDOptions, Student

if TYPE_CHECKING:
    from torch import nn

    from oneshui_hf.methods import Artefact


@dataclass(frozen=True)
class NegGradPlusOptions(SGDOptions):
    """Options of NegGrad+."""

    alpha: float = option(
        0.95, "Weight of the retain loss; the forget loss has weight -(1 - alpha).", minimum=0, maximum=1, at="apply", search=(0.8, 1.0)
    )


class NegGradPlus(Method[NegGradPlusOptions]):
    """Fine-tuning with the gradient of the forget set negated."""

    summary = "descends the retain loss and ascends the forget loss; reads both sets, so an upper reference"
    paper = "Kurmanji et al., Towards Unbounded Machine Unlearning, NeurIPS 2023"
    needs = Needs(apply=frozenset({"retain", "forget"}))
    options = NegGradPlusOptions
    presets = ("oneshui_plugins.presets", "neggrad_plus.json")
    stochastic = True

    def apply(
        self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: NegGradPlusOptions, context: Context
    ) -> nn.Module:
        """Minimise alpha * L(retain) - (1 - alpha) * L(forget), with one batch of each per step; the forget set is cycled."""
        from oneshui_hf.methods import losses

        kind = context.task.kind
        student = Student(model, options, context)
        for retain, forget in student.paired_batches(data.retain, data.forget):
            retain_loss = losses(student(retain.pixels), retain.labels, kind).mean()
            forget_loss = losses(student(forget.pixels), forget.labels, kind).mean()
            student.step(options.alpha * retain_loss - (1 - options.alpha) * forget_loss)
        return student.model
