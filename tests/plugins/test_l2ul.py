"""L2UL: targeted adversarial copies, inverted importances, and descent on the misclassification loss with both as anchors."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from oneshui_hf.data.schema import Task
from oneshui_hf.errors import UsageError
from oneshui_hf.methods import Context, DataAccess, Request, generator, losses, seeded
from oneshui_plugins.l2ul import (
    L2UL,
    L2ULOptions,
    adversarial_copies,
    are_misclassified,
    inverted_importances,
    sample_other_labels,
    targeted_attack,
)
from support.architectures import classifier
from support.projection_models import TASKS, Flat, context, labels_for, model_output, noise

KINDS = ["multi_label", "single_label"]


class TwoClasses(nn.Module):
    """A linear model of two classes on the pixels of photos (3, 2, 2)."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(0, "two classes"):
            self.head = nn.Linear(12, 2).double()

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return model_output(self.head(pixel_values.flatten(1)))


def request(kind: str, count: int = 3) -> Request:
    return Request(noise(count, 3, 2, 2, seed=4), (None,) * count, labels_for(count, kind), True)


def apply(model: nn.Module, support: Request, kind: str, seed: int = 0, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Return the new model and the report."""
    ctx = Context(TASKS[kind], seed, context().accelerator)
    data = DataAccess({"support": support}, frozenset({"support"}))
    return L2UL().apply(model, data, None, L2ULOptions(**options), ctx), ctx.report


# The attack


def test_the_attack_on_two_classes_finds_the_closed_form() -> None:
    # The target's loss falls fastest along w_y' - w_y, at every point: the best copy is on the ball in that direction.
    model, x, labels = TwoClasses().requires_grad_(False), noise(4, 3, 2, 2, seed=3), torch.tensor([0, 1, 1, 0])
    options = L2ULOptions(epsilon=0.3, attack_steps=40)
    found = targeted_attack(model, x, labels, noise(4, 3, 2, 2, seed=8), options, "single_label")
    best = F.normalize(model.head.weight[1] - model.head.weight[0], dim=0) * (2.0 * labels - 1).unsqueeze(1)
    moved = (found - x).flatten(1)
    # The random start decays. An untargeted attack, the wrong version, would have the other sign.
    assert (F.normalize(moved) * best).sum(1).min() > 0.95
    torch.testing.assert_close(moved.norm(dim=1), torch.full((4,), 0.3 * 12**0.5).double())


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_predicted_as_the_attacked_labels(kind: str) -> None:
    model, support, ctx = Flat(), request(kind), context(kind)
    weights = copy.deepcopy(model.state_dict())
    anchors = adversarial_copies(model, support, L2ULOptions(copies=6, epsilon=5.0, attack_steps=60), ctx)
    assert anchors.pixels.shape == (18, 3, 2, 2)
    given = support.labels.repeat_interleave(6, 0)
    is_other = anchors.labels != given
    assert (is_other.any(1) if kind == "multi_label" else is_other).all()
    predicted = model(anchors.pixels).logits
    predicted = (predicted > 0).double() if kind == "multi_label" else predicted.argmax(1)
    share = (predicted == anchors.labels).double().mean().item()
    assert share > 0.9
    assert ctx.report["attack_success"] == pytest.approx(share)
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_other_labels_are_uniform_over_all_others(kind: str) -> None:
    task = Task(kind, ("a", "b", "c"))  # type: ignore[arg-type]
    labels = torch.full((7000,), 1) if kind == "single_label" else torch.tensor([[1.0, 0.0, 1.0]]).repeat(7000, 1)
    values, counts = torch.unique(sample_other_labels(labels, task, generator(0)), dim=0, return_counts=True)
    others = 2 if kind == "single_label" else 7
    assert len(values) == others
    assert not (values == labels[0]).reshape(others, -1).all(1).any()
    assert (counts / 7000 - 1 / others).abs().max() < 0.03


def test_a_single_class_is_refused() -> None:
    with pytest.raises(UsageError, match="has a single class"):
        sample_other_labels(torch.zeros(2, dtype=torch.int64), Task("single_label", ("a",)), generator(0))


# Importances


def closed_form_stiffness(model: Flat, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """1 - importance of a linear model: |d ||W x + b||^2 / dW| = 2 |f x^T|, of the bias 2 |f|; mean over photos, scaled per tensor."""
    x, f = x.flatten(1), model(x).logits.detach()
    found = {"head.weight": 2 * (f.unsqueeze(2) * x.unsqueeze(1)).abs().mean(0), "head.bias": 2 * f.abs().mean(0)}
    return {name: 1 - (part - part.min()) / (part.max() - part.min()) for name, part in found.items()}


def test_importances_are_those_of_the_squared_output_and_inverted() -> None:
    model, support = Flat(), request("multi_label")
    found = inverted_importances(model, support, 2, context())
    expected = closed_form_stiffness(model, support.pixels)
    assert found.keys() == expected.keys()
    for name, part in found.items():
        torch.testing.assert_close(part, expected[name], rtol=1e-6, atol=1e-9)
        assert part.min() == 0  # the most important parameter is free
        assert part.max() == 1


# Steps


def loss_gradient(model: Flat, x: torch.Tensor, labels: torch.Tensor, kind: str) -> torch.Tensor:
    """The gradient of the mean loss by the head's weight: (sigmoid - y) x^T / K or (softmax - y) x^T."""
    logits = model(x).logits.detach()
    error = (logits.sigmoid() - labels) / 5 if kind == "multi_label" else logits.softmax(1) - F.one_hot(labels, 5)
    return error.mT @ x.flatten(1) / len(x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("goal", ["misclassify", "relabel"])
def test_two_steps_on_a_linear_model_have_a_closed_form(kind: str, goal: str) -> None:
    model, support = Flat(), request(kind)
    logits = model(support.pixels).logits
    labels = (logits > 0).double() if kind == "multi_label" else logits.argmax(1)  # so that it does not stop
    support = Request(support.pixels, support.people, labels, True)
    chosen = {"copies": 4, "epsilon": 0.5, "lr": 0.01, "weight": 3.0, "batch_size": 5}
    anchors = adversarial_copies(model, support, L2ULOptions(**chosen), context(kind))  # type: ignore[arg-type]
    new, report = apply(model, support, kind, steps=2, goal=goal, **chosen)
    other = sample_other_labels(labels, TASKS[kind], generator(0, "other labels"))
    stiffness = closed_form_stiffness(model, support.pixels)["head.weight"]

    expected = copy.deepcopy(model)
    start = model.head.weight.detach()
    for _ in range(2):
        if goal == "relabel":
            forget = loss_gradient(expected, support.pixels, other, kind)
        else:
            forget = -loss_gradient(expected, support.pixels, labels, kind)
        near = loss_gradient(expected, anchors.pixels, anchors.labels, kind)
        gradient = forget + near + 2 * 3.0 * stiffness * (expected.head.weight.detach() - start)
        bias = _bias_step(expected, support, labels, other, anchors, kind, goal, model)
        expected.head.weight.data -= 0.01 * gradient
        expected.head.bias.data -= 0.01 * bias
    assert report["steps_taken"] == 2
    torch.testing.assert_close(new.head.weight, expected.head.weight, rtol=1e-6, atol=1e-9)
    assert (new.head.weight - start).abs().max() > 1e-4


def _bias_step(model: Flat, support: Request, labels: Any, other: Any, anchors: Any, kind: str, goal: str, original: Flat) -> torch.Tensor:
    def of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = model(x).logits.detach()
        return ((logits.sigmoid() - y) / 5 if kind == "multi_label" else logits.softmax(1) - F.one_hot(y, 5)).mean(0)

    forget = of(support.pixels, other) if goal == "relabel" else -of(support.pixels, labels)
    stiffness = closed_form_stiffness(original, support.pixels)["head.bias"]
    return forget + of(anchors.pixels, anchors.labels) + 6.0 * stiffness * (model.head.bias.detach() - original.head.bias.detach())


def test_without_copies_and_distance_it_is_gradient_ascent() -> None:
    model, support = Flat(), request("multi_label")
    new, _ = apply(model, support, "multi_label", steps=1, copies=0, weight=0.0, lr=0.1)
    expected = model.head.weight + 0.1 * loss_gradient(model, support.pixels, support.labels, "multi_label")
    torch.testing.assert_close(new.head.weight, expected, rtol=1e-9, atol=1e-12)


def test_a_larger_weight_keeps_unimportant_parameters_closer() -> None:
    model, support = Flat(), request("multi_label")
    stiffness = closed_form_stiffness(model, support.pixels)["head.weight"]
    free, held = (
        (apply(model, support, "multi_label", steps=20, copies=0, weight=weight, lr=0.02)[0].head.weight - model.head.weight).abs()
        for weight in (0.0, 20.0)
    )
    moved = free > 1e-4
    ratio = held[moved] / free[moved]
    # Parameters with stiffness 1 are held back, those with 0 are not; not inverted, it would be the other way round.
    assert ratio[stiffness[moved] > 0.9].mean() < 0.5
    assert ratio[stiffness[moved] < 0.1].mean() > 0.7


def test_anchors_keep_the_predictions_of_the_copies() -> None:
    model, support = Flat(), request("single_label")
    labels = model(support.pixels).logits.argmax(1)
    support = Request(support.pixels, support.people, labels, True)
    options = {"epsilon": 1.0, "lr": 0.05, "weight": 0.0, "steps": 5}
    anchors = adversarial_copies(model, support, L2ULOptions(copies=8, **options), context("single_label"))  # type: ignore[arg-type]
    with_copies, without = (apply(model, support, "single_label", copies=copies, **options)[0] for copies in (8, 0))

    def loss(m: nn.Module) -> float:
        return losses(m(anchors.pixels).logits, anchors.labels, "single_label").mean().item()

    assert loss(with_copies) < loss(without)


# Stopping


def test_photos_count_as_misclassified_by_class_or_by_half_of_the_attributes() -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0, -2.0], [-2.0, -1.0, 1.0, 2.0]])
    assert are_misclassified(logits, torch.tensor([0, 0]), "single_label").tolist() == [False, True]
    labels = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]])
    assert are_misclassified(logits, labels, "multi_label").tolist() == [False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_the_steps_stop_once_all_photos_are_misclassified(kind: str) -> None:
    model, support = Flat(), request(kind)
    logits = model(support.pixels).logits
    labels = (logits > 0).double() if kind == "multi_label" else logits.argmax(1)
    support = Request(support.pixels, support.people, labels, True)
    new, report = apply(model, support, kind, steps=500, copies=0, weight=0.0, lr=0.2)
    assert 1 < report["steps_taken"] < 500
    assert are_misclassified(new(support.pixels).logits, labels, kind).all()  # type: ignore[arg-type]
    one_less, _ = apply(model, support, kind, steps=report["steps_taken"] - 1, copies=0, weight=0.0, lr=0.2)
    assert not are_misclassified(one_less(support.pixels).logits, labels, kind).all()  # type: ignore[arg-type]


def test_the_seed_decides_and_the_chunks_do_not() -> None:
    model, support = Flat(), request("multi_label")
    one, two, other = (apply(model, support, "multi_label", seed, steps=2, copies=3, lr=0.01)[0].head.weight for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    chunked, _ = apply(model, support, "multi_label", steps=2, copies=3, lr=0.01, chunk=1, batch_size=2)
    torch.testing.assert_close(chunked.head.weight, one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_a_real_architecture_takes_steps(name: str) -> None:
    model = classifier(name, "multi_label", layers=1)
    pixels, labels = noise(2, 3, 32, 32, dtype=torch.float32), labels_for(2, "multi_label", torch.float32)
    new, report = apply(model, Request(pixels, (None, None), labels, True), "multi_label", steps=2, copies=2, attack_steps=3)
    assert report["step_length"] > 0 or report["steps_taken"] == 0
    assert all(tensor.isfinite().all() for tensor in new.state_dict().values())
