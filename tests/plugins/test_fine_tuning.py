"""Fine-tuning against SGD by its definition."""

from __future__ import annotations

import pytest
import torch

from oneshui_plugins.fine_tuning import FineTuning
from support.affine_model import (
    KINDS,
    affine_model,
    apply_method,
    batch_order,
    context,
    design_matrix,
    face_set,
    mean_loss,
    sgd,
    task_gradient,
    theta,
)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_sgd_on_the_retain_set(kind: str) -> None:
    retain, forget = face_set(kind, 10), face_set(kind, 4, seed=1)
    new = apply_method(
        FineTuning, affine_model(), retain, forget, context(kind), epochs=3, lr=0.02, final_lr=0.01, weight_decay=0.1, batch_size=4
    )
    steps = [
        (lr, task_gradient(design_matrix(retain, positions), retain.labels[positions], kind))
        for epoch, lr in enumerate([0.02, 0.015, 0.01])
        for positions in batch_order("retain", epoch, 10, 4)
    ]
    torch.testing.assert_close(theta(new), sgd(theta(affine_model()), steps, 0.9, 0.1), rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]
    assert mean_loss(new, retain, kind) < mean_loss(affine_model(), retain, kind)
