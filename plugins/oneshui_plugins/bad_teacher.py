"""Bad Teacher: a student that learns from the original model what to say of those who stay, and from an ignorant one of those who go.

Chundawat, Tarun, Mandal, Kankanhalli, "Can Bad Teaching Induce Forgetting?", AAAI 2023, equation 1: with l(x) = 1 on forget photos and
0 on retain photos, the student S minimises over both sets, mixed,

    (1 - l(x)) * KL(competent(x) || S(x)) + l(x) * KL(incompetent(x) || S(x)).

Every photo counts the same, so a small forget set has a small say; the paper takes a part of the retain set, here it is the whole.
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

    lr: float = option(1e-3, "Learning rate of SGD, in the first epoch.", minimum=0, at="apply", search=(1e-4, 0.1))
    final_lr: float | None = option(
        1e-5, "Learning rate in the last epoch, reached by a cosine; the same as in the first where null.", minimum=0, at="apply"
    )


class BadTeacher(Method[BadTeacherOptions]):
    """Distillation from two teachers, one of whom knows nothing."""

    summary = "learn from an ignorant teacher on those who go; reads retain and forget, so an upper reference"
    paper = "Chundawat et al., Can Bad Teaching Induce Forgetting?, AAAI 2023"
    needs = Needs(apply=frozenset({"retain", "forget"}))
    options = BadTeacherOptions
    presets = ("oneshui_plugins.presets", "bad_teacher.json")
    draws = True
    distils = True

    def apply(
        self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: BadTeacherOptions, context: Context
    ) -> nn.Module:
        """Return the student of both teachers."""
        from .common.kl import divergence

        competent, incompetent = Teacher(model), Teacher(ignorant(model, context))
        student = Student(model, options, context)
        for _ in student.epochs():
            for batch in student.batches("retain and forget", data.retain, data.forget):
                taught, goes = competent(batch.pixels), batch.positions >= len(data.retain)
                if goes.any():
                    taught[goes] = incompetent(batch.pixels[goes])
                student.descend(divergence(taught, student(batch.pixels), context.task.kind).mean())
        return student.model


def ignorant(model: nn.Module, context: Context) -> nn.Module:
    """Return a model of the same architecture whose weights are drawn anew, as its class draws them."""
    with seeded(context.seed, "ignorant teacher"):
        fresh: nn.Module = type(model)(copy.deepcopy(model.config))  # type: ignore[arg-type, call-arg]
    return fresh.to(context.device)
