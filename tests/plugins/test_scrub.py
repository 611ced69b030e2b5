"""SCRUB against its equations, in float64, and against a teacher that is the student."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from oneshui_hf.data.face_set import FaceSet
from oneshui_plugins.common.sgd_loop import cosine
from oneshui_plugins.scrub import SCRUB
from support.affine_model import (
    KINDS,
    Gradient,
    affine,
    context,
    face_set,
    inputs,
    mean_loss,
    of_divergence,
    of_task,
    order,
    run,
    sgd,
    theta,
)

T, ALPHA, GAMMA, DECAY = 4.0, 0.3, 0.8, 0.02
VALUES: dict[str, Any] = {
    "epochs": 5, "forgetting_epochs": 3, "batch_size": 3, "lr": 0.05, "final_lr": 0.01,
    "temperature": T, "alpha": ALPHA, "gamma": GAMMA, "weight_decay": DECAY,
}  # fmt: skip


def reference(retain: FaceSet, forget: FaceSet, kind: str, clip: float, *, teacher_is_student: bool) -> torch.Tensor:
    """Algorithm 1; a teacher that is the student never differs from it, so its divergence and gradient are zero."""
    original = theta(affine())  # type: ignore[arg-type]

    def apart(x: torch.Tensor) -> Gradient:
        return (lambda w: torch.zeros_like(w)) if teacher_is_student else of_divergence(x, x @ original.T, kind, T)

    def disobey(positions: torch.Tensor) -> Gradient:
        away = apart(inputs(forget, positions))
        return lambda w: -away(w) * min(1.0, clip / (away(w).norm().item() + 1e-6))

    def obey(positions: torch.Tensor) -> Gradient:
        x = inputs(retain, positions)
        near, task = apart(x), of_task(x, retain.labels[positions], kind)
        return lambda w: ALPHA * near(w) + GAMMA * task(w)

    steps = []
    for epoch in range(5):
        rate = cosine(0.05, 0.01, epoch / 4)
        if epoch < 3:
            steps += [(rate, disobey(positions)) for positions in order("forget", epoch, len(forget), 3)]
        steps += [(rate, obey(positions)) for positions in order("retain", epoch, len(retain), 3)]
    return sgd(original, steps, 0.9, DECAY)


def distance(w: torch.Tensor, faces: FaceSet, kind: str) -> float:
    from oneshui_plugins.common.kl import divergence

    x, original = inputs(faces, torch.arange(len(faces))), theta(affine())  # type: ignore[arg-type]
    return divergence(x @ original.T, x @ w.T, kind).mean().item()  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_it_alternates_max_and_min_epochs(kind: str) -> None:
    retain, forget = face_set(kind, 10), face_set(kind, 5, salt=1)
    new = run(SCRUB, affine(), retain, forget, context(kind), clip=0.5, **VALUES)
    expected = reference(retain, forget, kind, 0.5, teacher_is_student=False)
    torch.testing.assert_close(theta(new), expected, rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_is_the_student_forgets_nothing(kind: str) -> None:
    retain, forget = face_set(kind, 10), face_set(kind, 5, salt=1)
    ours = theta(run(SCRUB, affine(), retain, forget, context(kind), clip=2, **VALUES))  # type: ignore[arg-type]
    wrong = reference(retain, forget, kind, 2, teacher_is_student=True)
    assert distance(ours, forget, kind) > 1.5 * distance(wrong, forget, kind)


def test_the_first_max_epoch_finds_no_slope() -> None:
    """At the teacher the divergence is at its minimum; nothing but the first min epoch sets the student going."""
    retain, forget, there = face_set("multi_label", 6), face_set("multi_label", 4, salt=1), context("multi_label")
    new = run(SCRUB, affine(), retain, forget, there, epochs=2, forgetting_epochs=2, alpha=0, gamma=0, weight_decay=0)
    torch.testing.assert_close(theta(new), theta(affine()), rtol=0, atol=1e-6)  # type: ignore[arg-type]


def test_without_forgetting_epochs_the_forget_set_is_not_learned_from() -> None:
    there, retain = context("single_label"), face_set("single_label", 8)
    one = run(SCRUB, affine(), retain, face_set("single_label", 4, salt=1), there, forgetting_epochs=0)
    other = run(SCRUB, affine(), retain, face_set("single_label", 6, salt=2), context("single_label"), forgetting_epochs=0)
    assert torch.equal(theta(one), theta(other))  # type: ignore[arg-type]
    assert all(set(row) == {"epoch", "lr", "retain"} for row in there.report["learning"])
    assert mean_loss(one, retain, "single_label") < mean_loss(affine(), retain, "single_label")
