"""Gradient descent until a stopping rule holds."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from oneshui_hf.errors import OneshuiError
from oneshui_plugins.common.descent import add_to, descend, gradient_of
from support.projection_models import Flat, context, noise


def pull_to_zero(model: Any) -> dict[str, torch.Tensor]:
    """The gradient of half the squared norm of the head's weight."""
    return {"head.weight": model.head.weight.detach().clone()}


def test_steps_follow_the_gradient_and_other_parameters_stay() -> None:
    model, ctx = Flat().train(), context()
    before = copy.deepcopy(model.state_dict())
    new = descend(model, pull_to_zero, 3, 0.25, ctx)
    torch.testing.assert_close(new.head.weight, 0.75**3 * model.head.weight, rtol=1e-14, atol=0)
    assert torch.equal(new.head.bias, model.head.bias)
    assert ctx.report["steps_taken"] == 3
    assert ctx.report["step_length"] == pytest.approx((1 - 0.75**3) * model.head.weight.norm().item())
    assert new.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_rule_is_asked_before_each_step() -> None:
    norms: list[float] = []

    def until_small(model: Any) -> dict[str, torch.Tensor] | None:
        norms.append(model.head.weight.norm().item())
        return pull_to_zero(model) if norms[-1] > 0.3 * norms[0] else None

    model, ctx = Flat(), context()
    descend(model, until_small, 30, 0.5, ctx)
    assert ctx.report["steps_taken"] == 2
    assert len(norms) == 3
    unchanged = descend(model, lambda new: None, 5, 1.0, ctx)
    assert torch.equal(unchanged.head.weight, model.head.weight)
    assert unchanged.head.weight.data_ptr() != model.head.weight.data_ptr()


def test_diverging_steps_raise() -> None:
    with pytest.raises(OneshuiError, match="use smaller or fewer steps"):
        descend(Flat(), lambda new: {"head.weight": new.head.weight.detach() * 1e200}, 9, 1.0, context())


def test_gradients_of_parts_add_up_to_that_of_the_whole() -> None:
    model, x = Flat(), noise(6, 3, 2, 2)
    whole = gradient_of(model(x).logits.square().sum(), model)
    total: dict[str, torch.Tensor] = {}
    for part in x.split(4):
        add_to(total, gradient_of(model(part).logits.square().sum(), model), 0.5)
    for name, tensor in whole.items():
        torch.testing.assert_close(2 * total[name], tensor)
    assert set(gradient_of((x.sum() + model.head.bias.sum()), model)) == {"head.bias"}


def test_frozen_parameters_are_left_out() -> None:
    model = Flat()
    model.head.weight.requires_grad_(False)
    assert set(gradient_of(model(noise(2, 3, 2, 2)).logits.sum(), model)) == {"head.bias"}
