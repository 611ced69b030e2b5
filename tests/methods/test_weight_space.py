"""Vectors in weight space."""

from __future__ import annotations

import pytest
import torch

from oneshui_hf.errors import OneshuiError
from oneshui_hf.methods import displaced, inner, norm, parameters, unit


def test_step_is_added_to_a_copy_of_the_model() -> None:
    model = torch.nn.Linear(2, 1)
    before = {name: p.clone() for name, p in parameters(model).items()}
    new = displaced(model, {"weight": torch.ones(1, 2)}, 0.5)
    assert torch.equal(new.weight, before["weight"] + 0.5)
    assert torch.equal(new.bias, before["bias"])
    assert all(torch.equal(p, before[name]) for name, p in parameters(model).items())


def test_unit_step_has_length_one_and_the_same_direction() -> None:
    step = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    assert norm(step).item() == 5
    assert inner(step, step).item() == 25
    assert norm(unit(step)).item() == pytest.approx(1)
    assert unit(step)["a"].tolist() == pytest.approx([0.6, 0.0])


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_step_without_direction_is_refused(value: float) -> None:
    with pytest.raises(OneshuiError, match="the step has no direction; try another photo"):
        unit({"a": torch.full((2,), value)})


@pytest.mark.parametrize("length", [1e300, -1e39, float("inf"), float("nan")])
def test_length_beyond_single_precision_is_refused(length: float) -> None:
    with pytest.raises(OneshuiError, match=r"^The step is too long: .* is not a number of single precision; use a smaller step\.$"):
        displaced(torch.nn.Linear(2, 1), {"weight": torch.ones(1, 2)}, length)
