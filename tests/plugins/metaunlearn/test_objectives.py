"""Every meta-objective against its formula, written out and differentiated by autograd, in float64."""

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
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torch.nn.attention import SDPBackend, sdpa_kernel

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.data.schema import Task
from oneshui_hf.methods import norm, parameters, score, seeded
from oneshui_plugins.metaunlearn.loss_network import MetaLoss, Photos, Weights, meta_gradient, said
from oneshui_plugins.metaunlearn.objectives import DISTANCES, TERMS, Alignment, Disobedience, answers, level, read_after, read_before
from support.architectures import classifier

KINDS = ("multi_label", "single_label")
DEVICE = torch.device("cpu")


class Doubles(FaceSet):
    """Photos in float64."""

    def batch(self, positions: torch.Tensor, device: Any = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        pixels, labels = super().batch(positions, device)
        return pixels.double(), labels


@cache
def world(kind: str, scale: float = 1.0) -> tuple[nn.Module, Task, dict[str, FaceSet], Weights]:
    """Return a model whose logits are `scale` times as large, its task, three sets of different sizes, and a theta_u."""
    task = Task(kind, tuple("abcde"))  # type: ignore[arg-type]
    model = classifier("vit", kind).double()
    draws = np.random.default_rng(0)
    model.classifier.weight.data *= scale
    sets = {}
    for name, count in {"forget": 5, "val": 4, "retain": 6}.items():
        store = draws.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        labels = torch.from_numpy(draws.integers(0, 2, (count, 5)).astype(np.float64) if kind == "multi_label" else np.arange(count) % 5)
        with torch.no_grad():  # some answers are right, and by a different share in each set, so that the weights are neither 0 nor 1
            logits = model(pixel_values=Preprocess(32)(torch.from_numpy(store)).double()).logits
        right = len(name) // 2
        labels[:right] = (logits > 0).double()[:right] if kind == "multi_label" else logits.argmax(1)[:right]
        sets[name] = Doubles(store, np.arange(count), labels, torch.arange(count), Preprocess(32), tuple("abcdef"))
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


WRITTEN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "smooth-l1": lambda x: torch.where(x.abs() < 1, x**2 / 2, x.abs() - 0.5),
    "l1": lambda x: x.abs(),
    "l2": lambda x: x * x,
}
FORMULAS: dict[str, Callable[..., torch.Tensor]] = {
    "both": lambda s, new, old: s(new.forget - new.val) + s(new.forget - old.val),
    "original": lambda s, new, old: s(new.forget - old.val),
    "unlearned": lambda s, new, old: s(new.forget - new.val),
    "retain": lambda s, new, old: s(new.forget - new.val) + s(new.forget - old.val) + s(new.retain - old.retain),
    "val": lambda s, new, old: s(new.forget - new.val) + s(new.forget - old.val) + s(new.val - old.val),
}


def written(
    objective: str, distance: str, weigh: bool, model: nn.Module, task: Task, sets: dict[str, FaceSet], theta_u: Weights
) -> torch.Tensor:
    """A as its formula says, differentiable; the score is a constant."""

    def weighed(theta: Weights) -> SimpleNamespace:
        out = {}
        for name, faces in sets.items():
            logits = logits_of(model, theta, faces)
            by = 1 - score(logits.detach(), faces.labels, task) / 100 if weigh else 1.0
            out[name] = task_loss(logits, faces.labels, task.kind).mean() * by
        return SimpleNamespace(**out)

    if objective == "scrub":
        stay, go = ((logits_of(model, theta_u, sets[n]), logits_of(model, parameters(model), sets[n])) for n in ("retain", "forget"))
        loss = task_loss(stay[0], sets["retain"].labels, task.kind)
        return (kl(stay[1], stay[0], task.kind) + loss).mean() - kl(go[1], go[0], task.kind).mean()
    return FORMULAS[objective](WRITTEN[distance], weighed(theta_u), weighed(parameters(model)))


def kl(p: torch.Tensor, q: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "multi_label":
        return kl_divergence(Bernoulli(logits=p), Bernoulli(logits=q)).mean(1)
    return kl_divergence(Categorical(logits=p), Categorical(logits=q))


def ours(objective: str, distance: str, weigh: bool, model: nn.Module, task: Task, sets: dict[str, FaceSet], chunk: int = 4) -> Any:
    before = {name: answers(model, sets[name], DEVICE, chunk) for name in read_before(objective)}
    if objective == "scrub":
        return Disobedience(sets, before, task, chunk)
    levels = {name: level(logits, sets[name].labels, task, weigh) for name, logits in before.items()}
    return Alignment(sets, levels, task, chunk, objective, distance, weigh)


def gradient(value: torch.Tensor, theta: Weights) -> Weights:
    parts = torch.autograd.grad(value, list(theta.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if part is None else part for (n, p), part in zip(theta.items(), parts, strict=True)}


def off(a: Weights, b: Weights) -> float:
    assert a.keys() == b.keys()
    assert norm(b) > 0
    return (norm({name: a[name] - b[name] for name in b}) / norm(b)).item()


def compare(objective: str, distance: str, weigh: bool, kind: str, scale: float = 1.0) -> None:
    model, task, sets, theta_u = world(kind, scale)
    leaves = {name: p.clone().requires_grad_() for name, p in theta_u.items()}
    expected = written(objective, distance, weigh, model, task, sets, leaves)
    value, v = ours(objective, distance, weigh, model, task, sets)(model, theta_u)
    assert value == pytest.approx(expected.item(), rel=1e-9)
    assert off(v, gradient(expected, leaves)) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weigh", [True, False])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("objective", TERMS)
def test_value_and_gradient_are_those_of_the_formula(objective: str, distance: str, weigh: bool, kind: str) -> None:
    compare(objective, distance, weigh, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_scrub_like_objective_is_its_formula(kind: str) -> None:
    compare("scrub", "smooth-l1", True, kind)


@pytest.mark.parametrize("distance", DISTANCES)
def test_far_apart_losses_too(distance: str) -> None:
    model, task, sets, theta_u = world("single_label", 40.0)
    logits = {name: logits_of(model, theta_u, sets[name]) for name in ("forget", "val")}
    loss = {name: task_loss(logits[name], sets[name].labels, task.kind).mean().item() for name in logits}
    assert abs(loss["forget"] - loss["val"]) > 1  # where smooth-L1 is no longer a square
    compare("both", distance, False, "single_label", 40.0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_of_these_tests_tell_sets_and_times_apart(kind: str) -> None:
    model, task, sets, theta_u = world(kind)
    shares = [
        1 - score(logits_of(model, theta, faces), faces.labels, task) / 100
        for faces in sets.values()
        for theta in (parameters(model), theta_u)
    ]
    assert all(0.02 < share < 0.98 for share in shares)
    assert len({round(share, 6) for share in shares}) >= 3


def test_every_formula_is_tested() -> None:
    assert set(TERMS) == set(FORMULAS)
    assert set(DISTANCES) == set(WRITTEN)


@pytest.mark.parametrize("kind", KINDS)
def test_no_objective_distance_or_weighting_is_another(kind: str) -> None:
    """Each option says something: leaving out the score, a term, or taking another distance gives another gradient."""
    model, task, sets, theta_u = world(kind)
    found = {
        (objective, distance, weigh): ours(objective, distance, weigh, model, task, sets)(model, theta_u)[1]
        for objective, distance, weigh in [
            *((name, "smooth-l1", True) for name in (*TERMS, "scrub")),
            ("both", "l1", True),
            ("both", "l2", True),
            ("both", "smooth-l1", False),
        ]
    }
    for one, a in found.items():
        for other, b in found.items():
            assert one == other or off(a, b) > 1e-3, (one, other)


@pytest.mark.parametrize("objective", [*TERMS, "scrub"])
def test_the_size_of_a_chunk_changes_nothing(objective: str) -> None:
    model, task, sets, theta_u = world("multi_label")
    (value, v), (same, w) = (ours(objective, "smooth-l1", True, model, task, sets, chunk)(model, theta_u) for chunk in (1, 100))
    assert value == pytest.approx(same, rel=1e-12)
    assert off(v, w) < 1e-12


@pytest.mark.parametrize("objective", [*TERMS, "scrub"])
def test_an_objective_reads_what_it_says_and_nothing_else(objective: str) -> None:
    model, task, sets, theta_u = world("multi_label")
    before = {name: answers(model, sets[name], DEVICE, 4) for name in read_before(objective)}
    here = {name: sets[name] for name in read_after(objective)}
    if objective == "scrub":
        call = Disobedience(here, before, task)
        assert {"forget", "retain"} == read_after(objective) == read_before(objective)
    else:
        call = Alignment(here, {name: level(logits, sets[name].labels, task) for name, logits in before.items()}, task, objective=objective)
        for name in read_before(objective):
            with pytest.raises(KeyError, match=name):
                replace(call, before={n: x for n, x in call.before.items() if n != name})(model, theta_u)
    assert call(model, theta_u)[0] == pytest.approx(ours(objective, "smooth-l1", True, model, task, sets)(model, theta_u)[0], rel=1e-12)
    for name in read_after(objective):
        with pytest.raises(KeyError, match=name):
            replace(call, sets={n: x for n, x in here.items() if n != name})(model, theta_u)


def test_where_nothing_has_moved_the_terms_that_hold_losses_vanish() -> None:
    model, task, sets, _ = world("multi_label")
    theta = parameters(model)
    both = ours("both", "l2", True, model, task, sets)(model, theta)[0]
    for objective in ("retain", "val"):
        assert ours(objective, "l2", True, model, task, sets)(model, theta)[0] == pytest.approx(both, rel=1e-9)
    retain_loss = level(answers(model, sets["retain"], DEVICE, 4), sets["retain"].labels, task, weigh=False)
    assert ours("scrub", "l2", True, model, task, sets)(model, theta)[0] == pytest.approx(retain_loss, rel=1e-9)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("objective", [*TERMS, "scrub"])
def test_the_whole_meta_gradient_equals_double_backward_through_everything(objective: str, steps: int, normalised: bool) -> None:
    model, task, sets, _ = world("multi_label")
    theta = parameters(model)
    pixels, labels = sets["val"].batch(torch.arange(3))
    photos = Photos(pixels + 0.1, labels, torch.tensor([0, 1, 2]))
    with seeded(0, "h"):
        h = MetaLoss(5 + 24, 5, 2).double().train()
    call, length = ours(objective, "smooth-l1", True, model, task, sets), 0.2
    value, parts, by_length = meta_gradient(
        model, theta, h, photos, call, task.kind, length=length, normalised=normalised, seed=3, steps=steps
    )

    here = {name: p.clone().requires_grad_() for name, p in theta.items()}
    r = torch.tensor(length, dtype=torch.float64, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH), seeded(3, "mask"):
        for _ in range(steps):
            m = h(said(model, here, pixels + 0.1, task.kind), labels, photos.person).mean()
            g = dict(zip(here, torch.autograd.grad(m, list(here.values()), create_graph=True, allow_unused=True), strict=True))
            g = {name: torch.zeros_like(here[name]) if part is None else part for name, part in g.items()}
            by = r / steps / norm(g) if normalised else r
            here = {name: p - by * g[name] for name, p in here.items()}
    expected = written(objective, "smooth-l1", True, model, task, sets, here)
    *wanted, by_r = torch.autograd.grad(expected, [*h.parameters(), r])
    assert value == pytest.approx(expected.item(), rel=1e-9)
    flat, true = (torch.cat([part.flatten() for part in some]) for some in (parts, wanted))
    assert (flat - true).norm() / true.norm() < 1e-9
    if normalised:
        assert by_length == pytest.approx(by_r.item(), rel=1e-8)
