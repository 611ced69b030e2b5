"""Fine-tuning: continue training on the retain set alone, so that the forget set is forgotten (catastrophic forgetting).

A baseline in Golatkar, Achille, Soatto, "Eternal Sunshine of the Spotless Net", CVPR 2020.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oneshui_hf.methods import Context, DataAccess, Method, Needs

from .common.sgd_loop import SGDOptions, Student

if TYPE_CHECKING:
    from torch import nn

    from oneshui_hf.methods import Artefact


class FineTuning(Method[SGDOptions]):
    """More training, on the retain set alone."""

    summary = "continues training on the retain set; reads it at request time, so an upper reference"
    paper = "Golatkar et al., Eternal Sunshine of the Spotless Net, CVPR 2020"
    needs = Needs(apply=frozenset({"retain"}))
    options = SGDOptions
    presets = ("oneshui_plugins.presets", "fine_tuning.json")
    stochastic = True

    def apply(self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: SGDOptions, context: Context) -> nn.Module:
        """Return the model after some epochs on the retain set."""
        from oneshui_hf.methods import losses

        student = Student(model, options, context)
        for _ in student.epochs():
            for batch in student.batches("retain", data.retain):
                student.step(losses(student(batch.pixels), batch.labels, context.task.kind).mean())
        return student.model
