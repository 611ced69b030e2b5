"""Relearning time against AdamW from its definition in float64, on an affine model whose gradient has a closed form."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.errors import UsageError
from oneshui_hf.methods import generator, losses, seeded
from oneshui_hf.stages.evaluation.relearning import DENSE_STEPS, SPARSE_INTERVAL, TOLERANCE, relearning_steps
from oneshui_hf.testing.toy_problem import ToyProblem, toy_problem
from support.affine_model import CLASSES, KINDS, Affine, affine_model, design_matrix, face_set, probabilities, task, theta
from support.architectures import classifier

PHOTOS, BATCH, LR, SEED = 7, 3, 2e-3, 5  # three steps per pass, the last one with a single photo


def loss_per_photo(weights: np.ndarray, x: np.ndarray, y: np.ndarray, kind: str) -> np.ndarray:
    p = probabilities(torch.from_numpy(x @ weights.T), kind).numpy()
    if kind == "multi_label":
        return -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(axis=1)
    return -np.log(p[np.arange(len(y)), y])


def reference_losses(start: Affine, faces: FaceSet, kind: str, steps: int, seed: int = SEED) -> list[float]:
    """Return the mean loss over all photos before and after each step of AdamW (Loshchilov and Hutter), without weight decay."""
    weights, x, y = theta(start).numpy(), design_matrix(faces, torch.arange(PHOTOS)).numpy(), faces.labels.numpy()
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    found = [loss_per_photo(weights, x, y, kind).mean()]
    passes = (torch.randperm(PHOTOS, generator=generator(seed, "relearn", epoch)).numpy() for epoch in itertools.count())
    batches = (order[i : i + BATCH] for order in passes for i in range(0, PHOTOS, BATCH))
    for step, rows in enumerate(itertools.islice(batches, steps), start=1):
        error = probabilities(torch.from_numpy(x[rows] @ weights.T), kind).numpy() - (
            y[rows] if kind == "multi_label" else np.eye(CLASSES)[y[rows]]
        )
        gradient = error.T @ x[rows] / len(rows) / (CLASSES if kind == "multi_label" else 1)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weights = weights - LR * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        found.append(loss_per_photo(weights, x, y, kind).mean())
    return found


def steps_of(model: torch.nn.Module, faces: FaceSet, target: float, kind: str, at_most: int = 40, seed: int = SEED) -> int | None:
    accelerator = Accelerator(cpu=True)
    return relearning_steps(model, faces, target, task(kind), accelerator, at_most=at_most, lr=LR, batch_size=BATCH, seed=seed)


def target_reached_at(after: list[float], step: int) -> float:
    """Return a target loss that is first reached at this step."""
    limit = (min(after[:step]) + after[step]) / 2
    assert after[step] < limit < min(after[:step])
    return limit / 1.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("reached", "expected"), [(1, 1), (4, 4), (9, 9), (10, 10), (11, 15), (12, 15), (15, 15), (21, 25)])
def test_steps_are_those_of_adamw(kind: str, reached: int, expected: int) -> None:
    faces = face_set(kind, PHOTOS)
    after = reference_losses(affine_model(), faces, kind, 40)
    target = target_reached_at(after, reached)
    assert max(after[expected:]) < 1.1 * target  # the loss stays low, so it is measured at step `expected`
    assert steps_of(affine_model(), faces, target, kind) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_model_with_the_target_loss_needs_no_step(kind: str) -> None:
    faces = face_set(kind, PHOTOS)
    loss = reference_losses(affine_model(), faces, kind, 0)[0]
    assert steps_of(affine_model(), faces, loss, kind) == 0
    assert steps_of(affine_model(), faces, loss / TOLERANCE * 1.0001, kind, at_most=0) == 0
    assert steps_of(affine_model(), faces, loss / TOLERANCE * 0.9999, kind) == 1


@pytest.mark.parametrize(
    ("reached", "at_most", "expected"), [(4, 3, None), (4, 4, 4), (12, 14, None), (12, 15, 15), (12, 19, 15), (1, 0, None)]
)
def test_training_stops_after_at_most_steps(reached: int, at_most: int, expected: int | None) -> None:
    faces = face_set("multi_label", PHOTOS)
    target = target_reached_at(reference_losses(affine_model(), faces, "multi_label", 40), reached)
    assert steps_of(affine_model(), faces, target, "multi_label", at_most=at_most) == expected


@pytest.mark.parametrize("target", [0.0, float("nan")])
def test_unreachable_loss_gives_none(target: float) -> None:
    assert steps_of(affine_model(), face_set("multi_label", PHOTOS), target, "multi_label") is None


def test_seed_determines_the_order_of_photos() -> None:
    faces = face_set("multi_label", PHOTOS)
    one, other = (reference_losses(affine_model(), faces, "multi_label", 1, seed)[1] for seed in (SEED, SEED + 1))
    between = (one + other) / 2 / 1.1
    seeds = (SEED, SEED + 1) if one < other else (SEED + 1, SEED)
    assert steps_of(affine_model(), faces, between, "multi_label", seed=seeds[0]) == 1
    assert steps_of(affine_model(), faces, between, "multi_label", seed=seeds[1]) != 1


class DropoutModel(Affine):
    """Drops half of its input in training mode. Records the mode of each forward pass."""

    modes: list[bool] = []  # noqa: RUF012

    def forward(self, pixel_values: torch.Tensor) -> Any:
        DropoutModel.modes.append(self.training)
        return super().forward(torch.nn.functional.dropout(pixel_values, 0.5, self.training))


def dropout_model() -> DropoutModel:
    with seeded(0, "affine"):
        return DropoutModel(SimpleNamespace(num_labels=CLASSES))


@pytest.mark.parametrize("training", [True, False])
def test_model_and_global_random_state_do_not_change(training: bool) -> None:
    model, faces = dropout_model().train(training), face_set("multi_label", PHOTOS)
    model(pixel_values=faces.batch(torch.arange(2))[0]).logits.sum().backward()
    before, grads = copy.deepcopy(model.state_dict()), [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    assert steps_of(model, faces, 0.01, "multi_label", at_most=8) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training == training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert (parameter.grad is None) if grad is None else torch.equal(parameter.grad, grad)  # type: ignore[arg-type]


def test_dropout_is_active_in_steps_and_inactive_in_measurements() -> None:
    DropoutModel.modes.clear()
    steps_of(dropout_model(), face_set("multi_label", PHOTOS), 0.01, "multi_label", at_most=23)
    measurement, step = [False] * 3, [True]  # three batches per measurement
    sparse = [*(step * SPARSE_INTERVAL), *measurement]
    assert DropoutModel.modes == [*measurement, *([*step, *measurement] * DENSE_STEPS), *sparse, *sparse]


@pytest.mark.parametrize("reached", [2, 5, 8])
def test_dropout_depends_on_seed_and_pass_only(reached: int) -> None:
    faces, model, after = face_set("multi_label", PHOTOS), dropout_model(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0)
    whole = faces.batch(torch.arange(PHOTOS))
    for epoch in range(3):
        with seeded(SEED, "relearn", "dropout", epoch):
            for rows in torch.randperm(PHOTOS, generator=generator(SEED, "relearn", epoch)).split(BATCH):
                optimizer.zero_grad()
                losses(model.train()(pixel_values=whole[0][rows]).logits, whole[1][rows], "multi_label").mean().backward()
                optimizer.step()
                after.append(losses(model.eval()(pixel_values=whole[0]).logits, whole[1], "multi_label").mean().item())
    torch.rand(reached)
    first = 1 + min(step for step in range(9) if after[step] <= after[reached - 1] * 1.00001)
    assert steps_of(dropout_model(), faces, after[reached - 1] * 1.00001 / 1.1, "multi_label") == first


def test_frozen_parameters_and_stored_gradients_do_not_affect_the_result() -> None:
    faces = face_set("multi_label", PHOTOS)
    target = target_reached_at(reference_losses(affine_model(), faces, "multi_label", 40), 9)
    frozen, used = affine_model().requires_grad_(False), affine_model()
    used(pixel_values=faces.batch(torch.arange(7))[0]).logits.square().sum().backward()
    assert steps_of(frozen, faces, target, "multi_label") == steps_of(used, faces, target, "multi_label") == 9
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_no_collective_operation_is_called() -> None:
    faces = face_set("multi_label", PHOTOS)
    target = target_reached_at(reference_losses(affine_model(), faces, "multi_label", 40), 9)
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"), unwrap_model=lambda model: model)  # has no collective operations
    assert (
        relearning_steps(affine_model(), faces, target, task("multi_label"), accelerator, at_most=20, lr=LR, batch_size=BATCH, seed=SEED)
        == 9
    )


def test_empty_forget_set_is_an_error() -> None:
    with pytest.raises(UsageError, match="The forget set contains no photos"):
        steps_of(affine_model(), face_set("multi_label", PHOTOS).subset(torch.arange(0)), 1.0, "multi_label")


@pytest.fixture(scope="module")
def problem() -> ToyProblem:
    return toy_problem("multi_label")


def test_model_that_hides_the_forget_set_relearns_sooner_than_an_untrained_one(problem: ToyProblem) -> None:
    hidden = copy.deepcopy(problem.model)
    pixels, labels = problem.sets["forget"].batch(torch.arange(len(problem.sets["forget"])))
    losses(hidden(pixel_values=pixels).logits, labels, "multi_label").mean().backward()
    with torch.no_grad():
        for parameter in hidden.parameters():  # one step of gradient ascent
            parameter.add_(0.3 * parameter.grad if parameter.grad is not None else 0)
    untrained = copy.deepcopy(problem.model)
    with seeded(1, "never"):
        for module in untrained.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
    target, accelerator = problem.loss(problem.model, "forget"), Accelerator(cpu=True)
    steps = [
        relearning_steps(model, problem.sets["forget"], target, problem.task, accelerator, at_most=200, lr=1e-3, seed=0)
        for model in (problem.model, hidden, untrained)
    ]
    assert problem.loss(hidden, "forget") > 2 * target
    assert steps[0] == 0
    assert steps[1] is not None
    assert 0 < steps[1] < (steps[2] or 201)


def test_model_with_batch_normalisation_relearns_one_photo() -> None:
    model = classifier("resnet", "multi_label")
    draws = np.random.default_rng(0)
    store, labels = draws.integers(0, 256, (1, 3, 8, 8), dtype=np.uint8), torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0]])
    faces = FaceSet(store, np.arange(1), labels, torch.zeros(1, dtype=torch.int64), Preprocess(8), ("p",))
    assert steps_of(model, faces, 1e-9, "multi_label", at_most=2) is None
