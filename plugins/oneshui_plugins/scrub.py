"""SCRUB: a student that diverges from its teacher, the original model, on the forget set and follows it on the retain set.

Kurmanji, Triantafillou, Hayes, Triantafillou, "Towards Unbounded Machine Unlearning", NeurIPS 2023, equation 3 and algorithm 1. With
w_o the teacher, w_u the student and d(x) = T^2 KL(w_o(x) || w_u(x)):

    max epoch:  minimise  - mean over forget of d(x)
    min epoch:  minimise  mean over retain of alpha * d(x) + gamma * task loss(x)

Each epoch is a max epoch followed by a min epoch; after the first `forgetting_epochs`, it is a min epoch alone. The student starts as the
teacher, where d has its minimum and a zero gradient, so the very first max epoch changes almost nothing until the first min epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from oneshui_hf.methods import Context, DataAccess, Method, Needs, option

from .common.sgd_loop import SGDOptions, Student, Teacher

if TYPE_CHECKING:
    from torch import nn

    from oneshui_hf.methods import Artefact


@dataclass(frozen=True)
class SCRUBOptions(SGDOptions):
    """Options of SCRUB."""

    lr: float = option(0.01, "Learning rate of SGD in the first epoch.", minimum=0, at="apply", search=(5e-4, 0.1))
    epochs: int = option(10, "Passes over the retain set.", minimum=1, at="apply", search=(1, 10))
    final_lr: float | None = option(
        5e-4, "Learning rate in the last epoch, reached by a cosine schedule; null means --lr.", minimum=0, at="apply"
    )
    weight_decay: float = option(5e-4, "Weight decay of SGD.", minimum=0, at="apply")
    forgetting_epochs: int = option(
        5, "Number of first epochs that begin with a pass over the forget set.", minimum=0, at="apply", search=(1, 7)
    )
    alpha: float = option(0.001, "Weight of the divergence from the teacher on the retain set.", minimum=0, at="apply")
    gamma: float = option(0.99, "Weight of the task loss on the retain set.", minimum=0, at="apply")
    temperature: float = option(4.0, "Temperature of the divergence between student and teacher.", minimum=1e-3, at="apply")
    clip: float = option(1.0, "Maximum gradient norm in the passes over the forget set.", minimum=0, at="apply")


class SCRUB(Method[SCRUBOptions]):
    """A student that diverges from the original model on the forget set."""

    summary = "trains a student away from the original on the forget set; reads retain and forget, so an upper reference"
    paper = "Kurmanji et al., Towards Unbounded Machine Unlearning, NeurIPS 2023"
    needs = Needs(apply=frozenset({"retain", "forget"}))
    options = SCRUBOptions
    presets = ("oneshui_plugins.presets", "scrub.json")
    stochastic = True
    uses_teacher = True

    def apply(self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: SCRUBOptions, context: Context) -> nn.Module:
        """Return the student after its max and min epochs."""
        from oneshui_hf.methods import losses

        from .common.kl import kl_divergence

        kind, temperature = context.task.kind, options.temperature
        teacher, student = Teacher(model), Student(model, options, context)
        for epoch in student.epochs():
            if epoch < options.forgetting_epochs:
                for batch in student.batches("forget", data.forget):
                    divergence = kl_divergence(teacher(batch.pixels), student(batch.pixels), kind, temperature).mean()
                    student.step(-divergence, "forget", clip=options.clip)
            for batch in student.batches("retain", data.retain):
                logits = student(batch.pixels)
                divergence = kl_divergence(teacher(batch.pixels), logits, kind, temperature).mean()
                task_loss = losses(logits, batch.labels, kind).mean()
                student.step(options.alpha * divergence + options.gamma * task_loss, "retain")
        return student.model
