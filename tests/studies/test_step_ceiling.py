"""`step_ceiling.py`: the best direction is that of a least-squares solver, and steps have their length and their losses."""

from __future__ import annotations

import copy

import pytest
import torch
from step_ceiling import FORGET, SUPPORT, THROUGH, Ceiling, cosine, nearest_through, without_component
from torch.nn.attention import SDPBackend, sdpa_kernel

from oneshui_hf.data.schema import TaskKind
from oneshui_hf.methods import displaced, inner, norm, parameters, unit
from oneshui_hf.testing.toy_problem import toy_problem
from oneshui_plugins.metaunlearn.loss_network import outputs


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_the_best_direction_is_that_of_a_least_squares_solver(kind: TaskKind) -> None:
    problem = toy_problem(kind)
    model = copy.deepcopy(problem.model).double()
    theta = parameters(model)
    pixels = problem.request.pixels[:1].double()
    rng = torch.Generator().manual_seed(0)
    target = {name: torch.randn(p.shape, generator=rng, dtype=torch.float64) for name, p in theta.items()}
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no batched derivative
        jacobian = torch.func.jacrev(lambda p: outputs(model, p, pixels, kind).flatten())(theta)
    matrix = torch.cat([jacobian[name].flatten(1) for name in theta], dim=1)  # (outputs, parameters)
    flat = torch.cat([part.flatten() for part in target.values()])
    expected = matrix.T @ torch.linalg.lstsq(matrix.T, flat, driver="gelsd").solution
    *_, last = nearest_through(model, pixels, kind, target, 200)
    found = torch.cat([last[name].flatten() for name in theta])
    assert (found - expected).norm() / expected.norm() < 1e-4
    distances = [norm({n: part[n] - target[n] for n in theta}).item() for part in nearest_through(model, pixels, kind, target, 5)]
    assert distances == sorted(distances, reverse=True)
    assert all(p.grad is None for p in model.parameters())


def test_the_forget_direction_has_no_component_along_the_retain_gradient() -> None:
    a, b = {"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([1.0, 0.0])}
    assert torch.equal(without_component(a, b)["x"], torch.tensor([0.0, 2.0]))
    problem = toy_problem("multi_label")
    ceiling = Ceiling.make(problem.model, problem.task, problem.sets, iterations=3)
    assert ceiling.cosines(FORGET)["retain"] == pytest.approx(0, abs=1e-5)
    assert ceiling.cosines(THROUGH)["forget"] > abs(ceiling.cosines(SUPPORT)["forget"])
    assert cosine(ceiling.directions[FORGET], ceiling.gradients["forget"]) == ceiling.cosines(FORGET)["forget"]


def test_steps_have_their_length_and_their_losses() -> None:
    problem = toy_problem("single_label")
    ceiling = Ceiling.make(problem.model, problem.task, problem.sets, iterations=3)
    assert not set(ceiling.measured["retain"].rows.tolist()) & set(problem.sets["forget"].rows.tolist())
    assert len(ceiling.measured["retain"]) == len(problem.sets["retain"]) // 2  # the others are used
    share = 1e-2
    length = share * norm(parameters(problem.model)).item()
    for name, direction in ceiling.directions.items():
        model = displaced(problem.model, unit(direction), length)
        found = ceiling.after_step(name, share)
        assert found["forget"][1] == pytest.approx(problem.loss(model, "forget"), rel=1e-4)
        assert found["test"][1] == pytest.approx(problem.loss(model, "test"), rel=1e-4)
        assert found["forget"][1] > ceiling.after_step(name, 0.0)["forget"][1]
    assert inner(ceiling.directions[FORGET], ceiling.gradients["forget"]) > 0
    header, original, *rows = ceiling.lines((share,))
    assert header.split() == ["direction", "length", "forget", "loss", "retain", "loss", "test", "loss"]
    assert original.startswith("original model")
    assert len(rows) == 2 * len(ceiling.directions)
