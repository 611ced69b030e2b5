"""NegGrad+ against SGD from its definition."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from oneshui_plugins.fine_tuning import FineTuning
from oneshui_plugins.neggrad_plus import NegGradPlus
from support.affine_model import KINDS, Gradient, affine, context, face_set, inputs, of_task, order, run, sgd, theta


@pytest.mark.parametrize("kind", KINDS)
def test_it_descends_the_retain_loss_and_ascends_the_forget_loss(kind: str) -> None:
    retain, forget = face_set(kind, 10), face_set(kind, 4, salt=1)
    new = run(NegGradPlus, affine(), retain, forget, context(kind), epochs=2, batch_size=3, alpha=0.7, lr=0.02, weight_decay=0.1)
    cycled = chain.from_iterable(order("forget", turn, 4, 3) for turn in range(9))  # 3 and 1 photos, again and again

    def both(stay: torch.Tensor, go: torch.Tensor) -> Gradient:
        down = of_task(inputs(retain, stay), retain.labels[stay], kind)
        up = of_task(inputs(forget, go), forget.labels[go], kind)
        return lambda w: 0.7 * down(w) - 0.3 * up(w)

    steps = [(0.02, both(stay, next(cycled))) for epoch in range(2) for stay in order("retain", epoch, 10, 3)]
    torch.testing.assert_close(theta(new), sgd(theta(affine()), steps, 0.9, 0.1), rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_weight_on_retain_it_is_fine_tuning(kind: str) -> None:
    retain, forget, values = face_set(kind, 9), face_set(kind, 4, salt=1), {"epochs": 2, "batch_size": 4}
    ours = run(NegGradPlus, affine(), retain, forget, context(kind), alpha=1, **values)
    torch.testing.assert_close(theta(ours), theta(run(FineTuning, affine(), retain, forget, context(kind), **values)))  # type: ignore[arg-type]
