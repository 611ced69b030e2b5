"""NegGrad+ against SGD by its definition."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from oneshui_plugins.fine_tuning import FineTuning
from oneshui_plugins.neggrad_plus import NegGradPlus
from support.affine_model import (
    KINDS,
    Gradient,
    affine_model,
    apply_method,
    batch_order,
    context,
    design_matrix,
    face_set,
    sgd,
    task_gradient,
    theta,
)


@pytest.mark.parametrize("kind", KINDS)
def test_it_descends_the_retain_loss_and_ascends_the_forget_loss(kind: str) -> None:
    retain, forget = face_set(kind, 10), face_set(kind, 4, seed=1)
    new = apply_method(
        NegGradPlus, affine_model(), retain, forget, context(kind), epochs=2, batch_size=3, alpha=0.7, lr=0.02, weight_decay=0.1
    )
    forget_batches = chain.from_iterable(batch_order("forget", cycle, 4, 3) for cycle in range(9))  # 3 and 1 photos, repeated

    def gradient(retain_rows: torch.Tensor, forget_rows: torch.Tensor) -> Gradient:
        down = task_gradient(design_matrix(retain, retain_rows), retain.labels[retain_rows], kind)
        up = task_gradient(design_matrix(forget, forget_rows), forget.labels[forget_rows], kind)
        return lambda w: 0.7 * down(w) - 0.3 * up(w)

    steps = [(0.02, gradient(rows, next(forget_batches))) for epoch in range(2) for rows in batch_order("retain", epoch, 10, 3)]
    torch.testing.assert_close(theta(new), sgd(theta(affine_model()), steps, 0.9, 0.1), rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_with_alpha_1_it_is_fine_tuning(kind: str) -> None:
    retain, forget, values = face_set(kind, 9), face_set(kind, 4, seed=1), {"epochs": 2, "batch_size": 4}
    ours = apply_method(NegGradPlus, affine_model(), retain, forget, context(kind), alpha=1, **values)
    torch.testing.assert_close(theta(ours), theta(apply_method(FineTuning, affine_model(), retain, forget, context(kind), **values)))  # type: ignore[arg-type]
