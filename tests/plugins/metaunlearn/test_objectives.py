"""Every meta-objective against its formula, differentiated by autograd, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical
from torch.distributions import kl_divergence as torch_kl_divergence
from torch.nn.attention import SDPBackend, sdpa_kernel

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.data.schema import Task
from oneshui_hf.methods import Weights, norm, parameters, score, seeded
from oneshui_plugins.metaunlearn.loss_network import MetaLoss, StepSize, SupportImages, meta_gradient, outputs
from oneshui_plugins.metaunlearn.objectives import (
    DISTANCES,
    TERMS,
    LossAlignment,
    ScrubObjective,
    compute_logits,
    sets_after_update,
    sets_before_update,
    weighted_loss,
)
from support.architectures import classifier

KINDS = ("multi_label", "single_label")
DEVICE = torch.device("cpu")


class Float64FaceSet(FaceSet):
    """A face set with pixels in float64."""

    def batch(self, positions: torch.Tensor, device: Any = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        pixels, labels = super().batch(positions, device)
        return pixels.double(), labels


@cache
def make_setting(kind: str, scale: float = 1.0) -> tuple[nn.Module, Task, dict[str, FaceSet], Weights]:
    """Return a model whose logits are `scale` times as large, its task, three sets of different sizes, and a theta_u."""
    task = Task(kind, tuple("abcde"))  # type: ignore[arg-type]
    model = classifier("vit", kind).double()
    rng = np.random.default_rng(0)
    model.classifier.weight.data *= scale
    sets = {}
    for name, count in {"forget": 5, "val": 4, "retain": 6}.items():
        store = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        labels = torch.from_numpy(rng.integers(0, 2, (count, 5)).astype(np.float64) if kind == "multi_label" else np.arange(count) % 5)
        with torch.no_grad():  # some predictions are correct, a different share in each set, so that the weights are neither 0 nor 1
            logits = model(pixel_values=Preprocess(32)(torch.from_numpy(store)).double()).logits
        correct = len(name) // 2
        labels[:correct] = (logits > 0).double()[:correct] if kind == "multi_label" else logits.argmax(1)[:correct]
        sets[name] = Float64FaceSet(store, np.arange(count), labels, torch.arange(count), Preprocess(32), tuple("abcdef"))
    with seeded(0, "theta_u"):
        theta_u = {name: p + 0.01 * torch.randn_like(p) for name, p in parameters(model).items()}
    return model, task, sets, theta_u


def logits_of(model: nn.Module, theta: Weights, faces: FaceSet) -> torch.Tensor:
    pixels = Preprocess(32)(torch.from_numpy(faces.store[faces.rows])).double()
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.functional_call(model, theta, kwargs={"pixel_values": pixels}).logits


def task_loss(logits: torch.Tensor, labels: torch.Tensor, kind: str) -> torch.Tensor:
    p = logits.sigmoid() if kind == "multi_label" else logits.softmax(1)
    if kind == "multi_label":
        return -(labels * p.log() + (1 - labels) * (1 - p).log()).mean(1)
    return -p[torch.arange(len(labels)), labels].log()


DISTANCE_FORMULAS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "smooth-l1": lambda x: torch.where(x.abs() < 1, x**2 / 2, x.abs() - 0.5),
    "l1": lambda x: x.abs(),
    "l2": lambda x: x * x,
}
OBJECTIVE_FORMULAS: dict[str, Callable[..., torch.Tensor]] = {
    "both": lambda s, after, before: s(after.forget - after.val) + s(after.forget - before.val),
    "original": lambda s, after, before: s(after.forget - before.val),
    "unlearned": lambda s, after, before: s(after.forget - after.val),
    "retain": lambda s, after, before: s(after.forget - after.val) + s(after.forget - before.val) + s(after.retain - before.retain),
    "val": lambda s, after, before: s(after.forget - after.val) + s(after.forget - before.val) + s(after.val - before.val),
}


def value_by_formula(
    objective: str, distance: str, weigh: bool, model: nn.Module, task: Task, sets: dict[str, FaceSet], theta_u: Weights
) -> torch.Tensor:
    """Return A by its formula, differentiable, with the score as a constant."""

    def weighted_losses(theta: Weights) -> SimpleNamespace:
        out = {}
        for name, faces in sets.items():
            logits = logits_of(model, theta, faces)
            factor = 1 - score(logits.detach(), faces.labels, task) / 100 if weigh else 1.0
            out[name] = task_loss(logits, faces.labels, task.kind).mean() * factor
        return SimpleNamespace(**out)

    if objective == "scrub":
        retain, forget = ((logits_of(model, theta_u, sets[n]), logits_of(model, parameters(model), sets[n])) for n in ("retain", "forget"))
        loss = task_loss(retain[0], sets["retain"].labels, task.kind)
        return (kl(retain[1], retain[0], task.kind) + loss).mean() - kl(forget[1], forget[0], task.kind).mean()
    return OBJECTIVE_FORMULAS[objective](DISTANCE_FORMULAS[distance], weighted_losses(theta_u), weighted_losses(parameters(model)))


def kl(p: torch.Tensor, q: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "multi_label":
        return torch_kl_divergence(Bernoulli(logits=p), Bernoulli(logits=q)).mean(1)
    return torch_kl_divergence(Categorical(logits=p), Categorical(logits=q))


def make_objective(
    objective: str, distance: str, weigh: bool, model: nn.Module, task: Task, sets: dict[str, FaceSet], chunk: int = 4
) -> Any:
    before = {name: compute_logits(model, sets[name], chunk, parameters(model)) for name in sets_before_update(objective)}
    if objective == "scrub":
        return ScrubObjective(sets, before, task, chunk)
    losses_before = {name: weighted_loss(logits, sets[name].labels, task, weigh) for name, logits in before.items()}
    return LossAlignment(sets, losses_before, task, chunk, objective, distance, weigh)


def gradient(value: torch.Tensor, theta: Weights) -> Weights:
    parts = torch.autograd.grad(value, list(theta.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if part is None else part for (n, p), part in zip(theta.items(), parts, strict=True)}


def relative_error(a: Weights, b: Weights) -> float:
    assert a.keys() == b.keys()
    assert norm(b) > 0
    return (norm({name: a[name] - b[name] for name in b}) / norm(b)).item()


def compare(objective: str, distance: str, weigh: bool, kind: str, scale: float = 1.0) -> None:
    model, task, sets, theta_u = make_setting(kind, scale)
    leaves = {name: p.clone().requires_grad_() for name, p in theta_u.items()}
    expected = value_by_formula(objective, distance, weigh, model, task, sets, leaves)
    value, v = make_objective(objective, distance, weigh, model, task, sets)(model, theta_u)
    assert value == pytest.approx(expected.item(), rel=1e-9)
    assert relative_error(v, gradient(expected, leaves)) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weigh", [True, False])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("objective", TERMS)
def test_value_and_gradient_equal_the_formula(objective: str, distance: str, weigh: bool, kind: str) -> None:
    compare(objective, distance, weigh, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_scrub_objective_equals_its_formula(kind: str) -> None:
    compare("scrub", "smooth-l1", True, kind)


@pytest.mark.parametrize("distance", DISTANCES)
def test_distant_losses_equal_the_formula(distance: str) -> None:
    model, task, sets, theta_u = make_setting("single_label", 40.0)
    logits = {name: logits_of(model, theta_u, sets[name]) for name in ("forget", "val")}
    loss = {name: task_loss(logits[name], sets[name].labels, task.kind).mean().item() for name in logits}
    assert abs(loss["forget"] - loss["val"]) > 1  # where smooth-L1 is not quadratic
    compare("both", distance, False, "single_label", 40.0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_in_these_tests_differ_between_sets_and_parameters(kind: str) -> None:
    model, task, sets, theta_u = make_setting(kind)
    factors = [
        1 - score(logits_of(model, theta, faces), faces.labels, task) / 100
        for faces in sets.values()
        for theta in (parameters(model), theta_u)
    ]
    assert all(0.02 < factor < 0.98 for factor in factors)
    assert len({round(factor, 6) for factor in factors}) >= 3


def test_every_formula_is_tested() -> None:
    assert set(TERMS) == set(OBJECTIVE_FORMULAS)
    assert set(DISTANCES) == set(DISTANCE_FORMULAS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_distance_and_weighting_has_a_different_gradient(kind: str) -> None:
    """Removing the score or a term, or using another distance, changes the gradient."""
    model, task, sets, theta_u = make_setting(kind)
    found = {
        (objective, distance, weigh): make_objective(objective, distance, weigh, model, task, sets)(model, theta_u)[1]
        for objective, distance, weigh in [
            *((name, "smooth-l1", True) for name in (*TERMS, "scrub")),
            ("both", "l1", True),
            ("both", "l2", True),
            ("both", "smooth-l1", False),
        ]
    }
    for one, a in found.items():
        for other, b in found.items():
            assert one == other or relative_error(a, b) > 1e-3, (one, other)


@pytest.mark.parametrize("objective", [*TERMS, "scrub"])
def test_the_chunk_size_does_not_affect_the_result(objective: str) -> None:
    model, task, sets, theta_u = make_setting("multi_label")
    (value, v), (same, w) = (make_objective(objective, "smooth-l1", True, model, task, sets, chunk)(model, theta_u) for chunk in (1, 100))
    assert value == pytest.approx(same, rel=1e-12)
    assert relative_error(v, w) < 1e-12


@pytest.mark.parametrize("objective", [*TERMS, "scrub"])
def test_an_objective_uses_exactly_its_declared_sets(objective: str) -> None:
    model, task, sets, theta_u = make_setting("multi_label")
    before = {name: compute_logits(model, sets[name], 4, parameters(model)) for name in sets_before_update(objective)}
    used = {name: sets[name] for name in sets_after_update(objective)}
    if objective == "scrub":
        call = ScrubObjective(used, before, task)
        assert {"forget", "retain"} == sets_after_update(objective) == sets_before_update(objective)
    else:
        call = LossAlignment(
            used, {name: weighted_loss(logits, sets[name].labels, task) for name, logits in before.items()}, task, objective=objective
        )
        for name in sets_before_update(objective):
            with pytest.raises(KeyError, match=name):
                replace(call, before={n: x for n, x in call.before.items() if n != name})(model, theta_u)
    assert call(model, theta_u)[0] == pytest.approx(
        make_objective(objective, "smooth-l1", True, model, task, sets)(model, theta_u)[0], rel=1e-12
    )
    for name in sets_after_update(objective):
        with pytest.raises(KeyError, match=name):
            replace(call, sets={n: x for n, x in used.items() if n != name})(model, theta_u)


def test_at_theta_the_terms_that_preserve_losses_vanish() -> None:
    model, task, sets, _ = make_setting("multi_label")
    theta = parameters(model)
    both = make_objective("both", "l2", True, model, task, sets)(model, theta)[0]
    for objective in ("retain", "val"):
        assert make_objective(objective, "l2", True, model, task, sets)(model, theta)[0] == pytest.approx(both, rel=1e-9)
    retain_loss = weighted_loss(compute_logits(model, sets["retain"], 4, parameters(model)), sets["retain"].labels, task, weigh=False)
    assert make_objective("scrub", "l2", True, model, task, sets)(model, theta)[0] == pytest.approx(retain_loss, rel=1e-9)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("objective", [*TERMS, "scrub"])
def test_the_meta_gradient_equals_double_backward_through_all_steps(objective: str, steps: int, normalised: bool) -> None:
    model, task, sets, _ = make_setting("multi_label")
    theta = parameters(model)
    pixels, labels = sets["val"].batch(torch.arange(3))
    images = SupportImages(pixels + 0.1, labels, torch.tensor([0, 1, 2]))
    with seeded(0, "h"):
        h = MetaLoss(5 + 24, 5, 2).double().train()
    call, length = make_objective(objective, "smooth-l1", True, model, task, sets), 0.2
    size = StepSize.normalised(length, theta) if normalised else StepSize.raw(length)
    value, parts, (by_length,) = meta_gradient(model, theta, h, images, call, task.kind, size, seed=3, steps=steps)

    theta_t = {name: p.clone().requires_grad_() for name, p in theta.items()}
    r = torch.tensor(length, dtype=torch.float64, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH), seeded(3, "mask"):
        for _ in range(steps):
            m = h(outputs(model, theta_t, pixels + 0.1, task.kind), labels, images.identity_rows).mean()
            g = dict(zip(theta_t, torch.autograd.grad(m, list(theta_t.values()), create_graph=True, allow_unused=True), strict=True))
            g = {name: torch.zeros_like(theta_t[name]) if part is None else part for name, part in g.items()}
            eta = r / steps / norm(g) if normalised else r
            theta_t = {name: p - eta * g[name] for name, p in theta_t.items()}
    expected = value_by_formula(objective, "smooth-l1", True, model, task, sets, theta_t)
    *expected_parts, by_r = torch.autograd.grad(expected, [*h.parameters(), r])
    assert value == pytest.approx(expected.item(), rel=1e-9)
    flat, true = (torch.cat([part.flatten() for part in gradients]) for gradients in (parts, expected_parts))
    assert (flat - true).norm() / true.norm() < 1e-9
    if normalised:
        assert by_length == pytest.approx(by_r.item(), rel=1e-8)
