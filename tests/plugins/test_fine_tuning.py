"""Fine-tuning against SGD from its definition."""

from __future__ import annotations

import pytest
import torch

from oneshui_plugins.fine_tuning import FineTuning
from support.affine_model import KINDS, affine, context, face_set, inputs, mean_loss, of_task, order, run, sgd, theta


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_sgd_on_the_retain_set(kind: str) -> None:
    retain, forget = face_set(kind, 10), face_set(kind, 4, salt=1)
    new = run(FineTuning, affine(), retain, forget, context(kind), epochs=3, lr=0.02, final_lr=0.01, weight_decay=0.1, batch_size=4)
    steps = [
        (rate, of_task(inputs(retain, positions), retain.labels[positions], kind))
        for epoch, rate in enumerate([0.02, 0.015, 0.01])
        for positions in order("retain", epoch, 10, 4)
    ]
    torch.testing.assert_close(theta(new), sgd(theta(affine()), steps, 0.9, 0.1), rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]
    assert mean_loss(new, retain, kind) < mean_loss(affine(), retain, kind)
