"""Bad Teacher: distil the original model on the retain set and a randomly initialised teacher on the forget set.

Chundawat, Tarun, Mandal, Kankanhalli, "Can Bad Teaching Induce Forgetting?", AAAI 2023, equation 1: with l(x) = 1 on forget photos and
0 on retain photos, the student S minimises, over mixed batches of both sets,

    (1 - l(x)) * KL(competent(x) || S(x)) + l(x) * KL(incompetent(x) || S(x)).

Every photo has the same weight, so a small forget set has little weight. The paper uses a part of the retain set; here all of it is used.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oneshui_hf.methods import Context, DataAccess, Method, Needs, option, seeded

from .common.sgd_loop import SGDOptions, Student, Teacher

if TYPE_CHECKING:
    from torch import nn

    from oneshui_hf.methods import Artefact


@dataclass(frozen=True)
class BadTeacherOptions(SGDOptions):
    """Options of Bad Teacher."""

    lr: float = option(1e-3, "Learning rate of SGD in the first epoch.", minimum=0, at="apply", search=(1e-4, 0.1))
    final_lr: float | None = option(
        1e-5, "Learning rate in the last epoch, reached by a cosine schedule; null means --lr.", minimum=0, at="apply"
    )


class BadTeacher(Method[BadTeacherOptions]):
    """Distillation from two teachers, one of which is randomly initialised."""

    summary = "distils a randomly initialised teacher on the forget set; reads retain and forget, so an upper reference"
    paper = "Chundawat et al., Can Bad Teaching Induce Forgetting?, AAAI 2023"
    needs = Needs(apply=frozenset({"retain", "forget"}))
    options = BadTeacherOptions
    presets = ("oneshui_plugins.presets", "bad_teacher.json")
    stochastic = True
    uses_teacher = True

    def apply(
        self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: BadTeacherOptions, context: Context
    ) -> nn.Module:
        """Return the student that was distilled from both teachers."""
        from .common.kl import kl_divergence

        competent, incompetent = Teacher(model), Teacher(randomly_initialised(model, context))
        student = Student(model, options, context)
        for _ in student.epochs():
            for batch in student.batches("retain and forget", data.retain, data.forget):
                targets, is_forget = competent(batch.pixels), batch.positions >= len(data.retain)
                if is_forget.any():
                    targets[is_forget] = incompetent(batch.pixels[is_forget])
                student.step(kl_divergence(targets, student(batch.pixels), context.task.kind).mean())
        return student.model


def randomly_initialised(model: nn.Module, context: Context) -> nn.Module:
    """Return a model of the same architecture with new weights from its class's initialisation."""
    with seeded(context.seed, "ignorant teacher"):
        new: nn.Module = type(model)(copy.deepcopy(model.config))  # type: ignore[arg-type, call-arg]
    return new.to(context.device)
