"""Relearning speed against AdamW from its definition in float64, on an affine model whose gradient has a closed form."""

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
from oneshui_hf.errors import UsageError
from oneshui_hf.methods import generator, losses, seeded
from oneshui_hf.stages.evaluation.relearning import CLOSELY, EVERY, TOLERANCE, relearning
from oneshui_hf.testing.toy_problem import World, world
from support.affine_model import CLASSES, KINDS, Affine, affine, face_set, inputs, spoken, task, theta

PHOTOS, BATCH, LR, SEED = 7, 3, 2e-3, 5  # three steps a pass, the last one of a single photo


def per_photo(weights: np.ndarray, x: np.ndarray, y: np.ndarray, kind: str) -> np.ndarray:
    p = spoken(torch.from_numpy(x @ weights.T), kind).numpy()
    if kind == "multi_label":
        return -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(axis=1)
    return -np.log(p[np.arange(len(y)), y])


def curve(start: Affine, faces: FaceSet, kind: str, steps: int, seed: int = SEED) -> list[float]:
    """The mean loss over all photos before any step and after each: AdamW as Loshchilov and Hutter write it, without decay."""
    weights, x, y = theta(start).numpy(), inputs(faces, torch.arange(PHOTOS)).numpy(), faces.labels.numpy()
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    found = [per_photo(weights, x, y, kind).mean()]
    passes = (torch.randperm(PHOTOS, generator=generator(seed, "relearn", epoch)).numpy() for epoch in itertools.count())
    batches = (order[i : i + BATCH] for order in passes for i in range(0, PHOTOS, BATCH))
    for step, rows in enumerate(itertools.islice(batches, steps), start=1):
        wrong = spoken(torch.from_numpy(x[rows] @ weights.T), kind).numpy() - (
            y[rows] if kind == "multi_label" else np.eye(CLASSES)[y[rows]]
        )
        gradient = wrong.T @ x[rows] / len(rows) / (CLASSES if kind == "multi_label" else 1)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weights = weights - LR * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        found.append(per_photo(weights, x, y, kind).mean())
    return found


def relearn(model: torch.nn.Module, faces: FaceSet, target: float, kind: str, at_most: int = 40, seed: int = SEED) -> int | None:
    there = Accelerator(cpu=True)
    return relearning(model, faces, target, task(kind), there, at_most=at_most, lr=LR, batch_size=BATCH, seed=seed)


def just_after(after: list[float], step: int) -> float:
    """A target that is reached by this step, and was not before."""
    limit = (min(after[:step]) + after[step]) / 2
    assert after[step] < limit < min(after[:step])
    return limit / 1.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("reached", "told"), [(1, 1), (4, 4), (9, 9), (10, 10), (11, 15), (12, 15), (15, 15), (21, 25)])
def test_the_steps_are_those_of_adamw(kind: str, reached: int, told: int) -> None:
    faces = face_set(kind, PHOTOS)
    after = curve(affine(), faces, kind, 40)
    target = just_after(after, reached)
    assert max(after[told:]) < 1.1 * target  # it stays there, so that the look at `told` finds it
    assert relearn(affine(), faces, target, kind) == told


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_back_needs_no_step(kind: str) -> None:
    faces = face_set(kind, PHOTOS)
    loss = curve(affine(), faces, kind, 0)[0]
    assert relearn(affine(), faces, loss, kind) == 0
    assert relearn(affine(), faces, loss / TOLERANCE * 1.0001, kind, at_most=0) == 0
    assert relearn(affine(), faces, loss / TOLERANCE * 0.9999, kind) == 1


@pytest.mark.parametrize(
    ("reached", "at_most", "told"), [(4, 3, None), (4, 4, 4), (12, 14, None), (12, 15, 15), (12, 19, 15), (1, 0, None)]
)
def test_it_is_not_tried_for_longer_than_at_most(reached: int, at_most: int, told: int | None) -> None:
    faces = face_set("multi_label", PHOTOS)
    target = just_after(curve(affine(), faces, "multi_label", 40), reached)
    assert relearn(affine(), faces, target, "multi_label", at_most=at_most) == told


@pytest.mark.parametrize("target", [0.0, float("nan")])
def test_what_cannot_be_reached_is_none(target: float) -> None:
    assert relearn(affine(), face_set("multi_label", PHOTOS), target, "multi_label") is None


def test_the_seed_draws_the_order() -> None:
    faces = face_set("multi_label", PHOTOS)
    one, other = (curve(affine(), faces, "multi_label", 1, seed)[1] for seed in (SEED, SEED + 1))
    between = (one + other) / 2 / 1.1
    seeds = (SEED, SEED + 1) if one < other else (SEED + 1, SEED)
    assert relearn(affine(), faces, between, "multi_label", seed=seeds[0]) == 1
    assert relearn(affine(), faces, between, "multi_label", seed=seeds[1]) != 1


class Dropping(Affine):
    """Half of what it sees is dropped while it trains. Notes in which mode it is asked."""

    modes: list[bool] = []  # noqa: RUF012

    def forward(self, pixel_values: torch.Tensor) -> Any:
        Dropping.modes.append(self.training)
        return super().forward(torch.nn.functional.dropout(pixel_values, 0.5, self.training))


def dropping() -> Dropping:
    with seeded(0, "affine"):
        return Dropping(SimpleNamespace(num_labels=CLASSES))


@pytest.mark.parametrize("training", [True, False])
def test_model_and_global_random_state_are_as_they_were(training: bool) -> None:
    model, faces = dropping().train(training), face_set("multi_label", PHOTOS)
    model(pixel_values=faces.batch(torch.arange(2))[0]).logits.sum().backward()
    before, grads = copy.deepcopy(model.state_dict()), [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    assert relearn(model, faces, 0.01, "multi_label", at_most=8) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training == training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert (parameter.grad is None) if grad is None else torch.equal(parameter.grad, grad)  # type: ignore[arg-type]


def test_dropout_is_on_in_a_step_and_off_in_a_look() -> None:
    Dropping.modes.clear()
    relearn(dropping(), face_set("multi_label", PHOTOS), 0.01, "multi_label", at_most=23)
    look, step = [False] * 3, [True]  # three batches a look
    rare = [*(step * EVERY), *look]
    assert Dropping.modes == [*look, *([*step, *look] * CLOSELY), *rare, *rare]


@pytest.mark.parametrize("reached", [2, 5, 8])
def test_dropout_is_drawn_by_seed_and_pass_and_not_by_what_was_drawn_before(reached: int) -> None:
    faces, model, after = face_set("multi_label", PHOTOS), dropping(), []
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
    assert relearn(dropping(), faces, after[reached - 1] * 1.00001 / 1.1, "multi_label") == first


def test_frozen_parameters_and_old_gradients_change_nothing() -> None:
    faces = face_set("multi_label", PHOTOS)
    target = just_after(curve(affine(), faces, "multi_label", 40), 9)
    frozen, used = affine().requires_grad_(False), affine()
    used(pixel_values=faces.batch(torch.arange(7))[0]).logits.square().sum().backward()
    assert relearn(frozen, faces, target, "multi_label") == relearn(used, faces, target, "multi_label") == 9
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_processes_do_not_wait_for_each_other() -> None:
    faces = face_set("multi_label", PHOTOS)
    target = just_after(curve(affine(), faces, "multi_label", 40), 9)
    lonely: Any = SimpleNamespace(device=torch.device("cpu"), unwrap_model=lambda model: model)  # nothing collective can be called
    assert relearning(affine(), faces, target, task("multi_label"), lonely, at_most=20, lr=LR, batch_size=BATCH, seed=SEED) == 9


def test_no_photos_is_an_error() -> None:
    with pytest.raises(UsageError, match="The forget set holds no photos"):
        relearn(affine(), face_set("multi_label", PHOTOS).subset(torch.arange(0)), 1.0, "multi_label")


@pytest.fixture(scope="module")
def here() -> World:
    return world("multi_label")


def test_a_model_that_hides_is_back_sooner_than_one_that_never_knew(here: World) -> None:
    hiding = copy.deepcopy(here.model)
    pixels, labels = here.sets["forget"].batch(torch.arange(len(here.sets["forget"])))
    losses(hiding(pixel_values=pixels).logits, labels, "multi_label").mean().backward()
    with torch.no_grad():
        for parameter in hiding.parameters():  # one step up the loss
            parameter.add_(0.3 * parameter.grad if parameter.grad is not None else 0)
    never = copy.deepcopy(here.model)
    with seeded(1, "never"):
        for module in never.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
    target, accelerator = here.loss(here.model, "forget"), Accelerator(cpu=True)
    steps = [
        relearning(model, here.sets["forget"], target, here.task, accelerator, at_most=200, lr=1e-3, seed=0)
        for model in (here.model, hiding, never)
    ]
    assert here.loss(hiding, "forget") > 2 * target
    assert steps[0] == 0
    assert steps[1] is not None
    assert 0 < steps[1] < (steps[2] or 201)
