"""The time of one photo: both passes are timed on the last of several turns, and the model is not changed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from oneshui_hf.data.schema import TaskKind
from oneshui_hf.stages import timing
from oneshui_hf.stages.timing import PhotoTiming, time_per_photo


class Model(torch.nn.Module):
    """A linear model with a frozen and an unused parameter. It advances a clock by one second per forward pass."""

    def __init__(self, clock: list[float]) -> None:
        super().__init__()
        self.clock, self.with_gradients = clock, list[bool]()
        self.head = torch.nn.Linear(12, 3)
        self.frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)
        self.unused = torch.nn.Parameter(torch.ones(3))

    def forward(self, pixel_values: torch.Tensor) -> Any:
        self.clock[0] += 1.0 + torch.is_grad_enabled()
        self.with_gradients.append(torch.is_grad_enabled())
        return SimpleNamespace(logits=self.head(pixel_values.flatten(1)) + self.frozen)


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_the_last_turn_is_timed_per_photo_and_no_gradient_remains(kind: TaskKind, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(timing, "now", lambda device: clock[0])
    model = Model(clock)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    labels = torch.zeros(4, 3) if kind == "multi_label" else torch.zeros(4, dtype=torch.long)
    found = time_per_photo(model, torch.rand(4, 3, 2, 2), labels, kind)
    assert found == PhotoTiming(forward=1 / 4, backward=2 / 4, peak_mb=found.peak_mb)
    assert model.with_gradients == [False, True] * timing.TURNS
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
