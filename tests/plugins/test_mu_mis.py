"""MU-Mis: descent on the input sensitivity of the true class minus that of another class."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Context, DataAccess, Request, generator, norm, parameters, seeded
from oneshui_plugins.common.label_noise import sample_other_class
from oneshui_plugins.mu_mis import MUMis, MUMisOptions, sensitivities, sensitivity_difference
from support.architectures import classifier
from support.projection_models import TASKS, Flat, context, labels_for, model_output, noise


def apply(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, seed: int = 0, kind: str = "single_label", **options: Any) -> Any:
    """Return the new model and the report."""
    ctx = Context(TASKS[kind], seed, context().accelerator)
    data = DataAccess({"support": Request(pixels, (None,) * len(pixels), labels, True)}, frozenset({"support"}))
    return MUMis().apply(model, data, None, MUMisOptions(**options), ctx), ctx.report


class Smooth(nn.Module):
    """A network whose input sensitivities depend on the photo."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(0, "smooth"):
            self.first, self.head = nn.Linear(12, 6), nn.Linear(6, 5)
        self.double()

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return model_output(self.head(self.first(pixel_values.flatten(1)).tanh()))


def numerical_sensitivity(model: nn.Module, x: torch.Tensor, label: int, step: float = 1e-5) -> float:
    """||df_c/dx||^2 of one photo by central differences."""
    total = 0.0
    for i in range(x.numel()):
        move = torch.zeros_like(x).flatten()
        move[i] = step
        with torch.no_grad():
            up, down = (model((x + sign * move.view_as(x)).unsqueeze(0)).logits[0, label].item() for sign in (1, -1))
        total += ((up - down) / (2 * step)) ** 2
    return total


def test_sensitivities_are_those_of_finite_differences() -> None:
    model, x = Smooth(), noise(3, 3, 2, 2)
    target, other = torch.tensor([0, 4, 2]), torch.tensor([1, 0, 3])
    all_classes = sensitivities(model, x, 5)
    for i in range(3):
        for label in range(5):
            assert all_classes[i, label].item() == pytest.approx(numerical_sensitivity(model, x[i], label), rel=1e-7)
    found = sensitivity_difference(model, x, target, other)
    expected = all_classes[torch.arange(3), target] - all_classes[torch.arange(3), other]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_the_gradient_is_that_of_finite_differences_in_the_weights() -> None:
    model, x, target, other = Smooth(), noise(2, 3, 2, 2), torch.tensor([0, 4]), torch.tensor([1, 0])
    weight = model.first.weight
    (gradient,) = torch.autograd.grad(sensitivity_difference(model, x, target, other).sum(), weight)
    for row, column in ((0, 0), (3, 7), (5, 11)):
        values = []
        for sign in (1, -1):
            moved = copy.deepcopy(model)
            moved.first.weight.data[row, column] += sign * 1e-5
            values.append(sensitivity_difference(moved, x, target, other).sum().item())
        assert gradient[row, column].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


def test_a_step_on_a_linear_model_has_a_closed_form() -> None:
    # With f = W x the sensitivity of class c is ||w_c||^2 at every photo, and its gradient 2 w_c.
    model, x, labels = Flat(), noise(1, 3, 2, 2), torch.tensor([2])
    before = model.head.weight.detach().clone()
    new, report = apply(model, x, labels, steps=1, length=0.05)
    change = new.head.weight.detach() - before
    moved = [c for c in range(5) if change[c].any() and c != 2]
    assert len(moved) == 1  # the sampled class
    expected = torch.zeros_like(before)
    expected[2], expected[moved[0]] = -before[2], before[moved[0]]
    length = 0.05 * norm(parameters(model)).item()
    torch.testing.assert_close(change, length * expected / expected.norm(), rtol=1e-10, atol=1e-14)
    assert torch.equal(new.head.bias, model.head.bias)
    assert report == {"steps_taken": 1, "step_length": pytest.approx(length)}


def test_the_loss_is_the_mean_over_the_photos() -> None:
    # Both photos' true classes and sampled classes appear in the direction: the sum of what each photo alone gives.
    model, x, labels = Flat(), noise(2, 3, 2, 2), torch.tensor([2, 0])
    new, _ = apply(model, x, labels, steps=1, length=0.05)
    other = sample_other_class(labels, 5, generator(0, "other classes"))
    factors = torch.zeros(5).double()
    for target, sampled in zip(labels.tolist(), other.tolist(), strict=True):
        factors[target] -= 1
        factors[sampled] += 1
    expected = factors.unsqueeze(1) * model.head.weight
    change = new.head.weight - model.head.weight
    torch.testing.assert_close(change / change.norm(), expected / expected.norm(), rtol=1e-10, atol=1e-12)


def test_it_stops_when_the_other_classes_have_recovered() -> None:
    # On a linear model the other classes' sensitivity rises from the first step on.
    model, x, labels = Flat(), noise(1, 3, 2, 2), torch.tensor([2])
    others = [0, 1, 3, 4]
    original = model.head.weight.norm(dim=1)[others].mean()
    assert apply(model, x, labels, steps=50, length=0.01, recovery=1.0)[1]["steps_taken"] == 1
    new, report = apply(model, x, labels, steps=200, length=0.01, recovery=1.2)
    assert 1 < report["steps_taken"] < 200
    assert new.head.weight.norm(dim=1)[others].mean() > 1.2 * original
    one_less, _ = apply(model, x, labels, steps=report["steps_taken"] - 1, length=0.01, recovery=1.2)
    assert one_less.head.weight.norm(dim=1)[others].mean() <= 1.2 * original
    assert apply(model, x, labels, steps=7, length=0.01, recovery=5.0)[1]["steps_taken"] == 7


def test_a_gradient_by_the_photo_alone_would_not_change_the_model() -> None:
    """The wrong version: the sensitivities without a graph."""
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(sensitivities(Smooth(), noise(1, 3, 2, 2), 5).sum(), list(Smooth().parameters()))


def test_the_true_class_becomes_less_sensitive_relative_to_the_others() -> None:
    model, x, labels = Smooth(), noise(4, 3, 2, 2), labels_for(4, "single_label")
    new, _ = apply(model, x, labels, steps=20, length=0.01, recovery=3.0)
    is_target = torch.nn.functional.one_hot(labels, 5).bool()

    def ratio(m: nn.Module) -> float:
        found = sensitivities(m, x, 5)
        return (found[is_target].mean() / found[~is_target].mean()).item()

    assert ratio(new) < 0.9 * ratio(model)


def test_the_seed_samples_the_other_classes_and_the_chunk_does_not_matter() -> None:
    model, x, labels = Smooth(), noise(5, 3, 2, 2), labels_for(5, "single_label")
    one, two, other = (apply(model, x, labels, seed, steps=2, length=0.01)[0].head.weight for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    torch.testing.assert_close(apply(model, x, labels, steps=2, length=0.01, chunk=2)[0].head.weight, one, rtol=1e-10, atol=1e-13)


def test_attributes_and_a_single_class_are_refused_in_one_sentence() -> None:
    with pytest.raises(UsageError, match="two or more classes, and not attributes; use another method") as raised:
        apply(Flat(), noise(1, 3, 2, 2), labels_for(1, "multi_label"), kind="multi_label")
    assert str(raised.value).count(".") == 1


def test_a_model_that_ignores_the_photos_raises() -> None:
    model = Flat()
    model.head.weight.data.zero_()
    with pytest.raises(OneshuiError, match="zero or not finite"):
        apply(model, noise(1, 3, 2, 2), torch.tensor([2]))


@pytest.mark.parametrize("name", ["vit", "swin", "resnet"])
def test_attention_can_be_differentiated_twice(name: str) -> None:
    model = classifier(name, "single_label", layers=1)
    pixels, labels = noise(2, 3, 32, 32, dtype=torch.float32), labels_for(2, "single_label")
    new, report = apply(model, pixels, labels, steps=2, recovery=5.0)
    assert report["step_length"] > 0
    assert all(tensor.isfinite().all() for tensor in new.state_dict().values())
