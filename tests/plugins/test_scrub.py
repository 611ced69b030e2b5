"""SCRUB against its equations, in float64, and against a version whose teacher is the student."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from oneshui_hf.data.face_set import FaceSet
from oneshui_plugins.common.sgd_loop import cosine_schedule
from oneshui_plugins.scrub import SCRUB
from support.affine_model import (
    KINDS,
    Gradient,
    affine_model,
    apply_method,
    batch_order,
    context,
    design_matrix,
    face_set,
    kl_gradient,
    mean_loss,
    sgd,
    task_gradient,
    theta,
)

T, ALPHA, GAMMA, DECAY = 4.0, 0.3, 0.8, 0.02
VALUES: dict[str, Any] = {
    "epochs": 5, "forgetting_epochs": 3, "batch_size": 3, "lr": 0.05, "final_lr": 0.01,
    "temperature": T, "alpha": ALPHA, "gamma": GAMMA, "weight_decay": DECAY,
}  # fmt: skip


def reference(retain: FaceSet, forget: FaceSet, kind: str, clip: float, *, teacher_is_student: bool) -> torch.Tensor:
    """Return the weights after algorithm 1. A teacher that is the student has divergence 0 from it, with gradient 0."""
    original = theta(affine_model())  # type: ignore[arg-type]

    def divergence_gradient(x: torch.Tensor) -> Gradient:
        return (lambda w: torch.zeros_like(w)) if teacher_is_student else kl_gradient(x, x @ original.T, kind, T)

    def max_step(positions: torch.Tensor) -> Gradient:
        away = divergence_gradient(design_matrix(forget, positions))
        return lambda w: -away(w) * min(1.0, clip / (away(w).norm().item() + 1e-6))

    def min_step(positions: torch.Tensor) -> Gradient:
        x = design_matrix(retain, positions)
        near, task = divergence_gradient(x), task_gradient(x, retain.labels[positions], kind)
        return lambda w: ALPHA * near(w) + GAMMA * task(w)

    steps = []
    for epoch in range(5):
        lr = cosine_schedule(0.05, 0.01, epoch / 4)
        if epoch < 3:
            steps += [(lr, max_step(positions)) for positions in batch_order("forget", epoch, len(forget), 3)]
        steps += [(lr, min_step(positions)) for positions in batch_order("retain", epoch, len(retain), 3)]
    return sgd(original, steps, 0.9, DECAY)


def divergence(w: torch.Tensor, faces: FaceSet, kind: str) -> float:
    from oneshui_plugins.common.kl import kl_divergence

    x, original = design_matrix(faces, torch.arange(len(faces))), theta(affine_model())  # type: ignore[arg-type]
    return kl_divergence(x @ original.T, x @ w.T, kind).mean().item()  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_it_alternates_max_and_min_epochs(kind: str) -> None:
    retain, forget = face_set(kind, 10), face_set(kind, 5, seed=1)
    new = apply_method(SCRUB, affine_model(), retain, forget, context(kind), clip=0.5, **VALUES)
    expected = reference(retain, forget, kind, 0.5, teacher_is_student=False)
    torch.testing.assert_close(theta(new), expected, rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_forgetting_needs_a_teacher_that_is_not_the_student(kind: str) -> None:
    retain, forget = face_set(kind, 10), face_set(kind, 5, seed=1)
    ours = theta(apply_method(SCRUB, affine_model(), retain, forget, context(kind), clip=2, **VALUES))  # type: ignore[arg-type]
    wrong = reference(retain, forget, kind, 2, teacher_is_student=True)
    assert divergence(ours, forget, kind) > 1.5 * divergence(wrong, forget, kind)


def test_the_first_max_epoch_has_zero_gradient() -> None:
    """The student starts at the minimum of the divergence, so only the first min epoch changes it."""
    retain, forget, ctx = face_set("multi_label", 6), face_set("multi_label", 4, seed=1), context("multi_label")
    new = apply_method(SCRUB, affine_model(), retain, forget, ctx, epochs=2, forgetting_epochs=2, alpha=0, gamma=0, weight_decay=0)
    torch.testing.assert_close(theta(new), theta(affine_model()), rtol=0, atol=1e-6)  # type: ignore[arg-type]


def test_without_forgetting_epochs_the_forget_set_is_not_used() -> None:
    ctx, retain = context("single_label"), face_set("single_label", 8)
    one = apply_method(SCRUB, affine_model(), retain, face_set("single_label", 4, seed=1), ctx, forgetting_epochs=0)
    other = apply_method(SCRUB, affine_model(), retain, face_set("single_label", 6, seed=2), context("single_label"), forgetting_epochs=0)
    assert torch.equal(theta(one), theta(other))  # type: ignore[arg-type]
    assert all(set(row) == {"epoch", "lr", "retain"} for row in ctx.report["learning"])
    assert mean_loss(one, retain, "single_label") < mean_loss(affine_model(), retain, "single_label")
