"""The meta-gradient against differentiating twice through the model, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from oneshui_hf.methods import inner, norm, seeded
from oneshui_plugins.metaunlearn import loss_network as meta_loss
from oneshui_plugins.metaunlearn.loss_network import ALL, MetaLoss, Photos, Sees, Weights, meta_gradient, movable, said, uphill, walk
from support.architectures import classifier

KIND = "multi_label"
SEED = 7
SEEN = {
    "all": ALL,
    "no features": Sees(features=False),
    "no identity": Sees(identity=False),
    "no targets": Sees(targets=False),
    "probabilities alone": Sees(features=False, identity=False, targets=False),
}
Setting = tuple[torch.nn.Module, MetaLoss, Photos, torch.Tensor, torch.Tensor]


def setting(name: str, sees: Sees = ALL) -> Setting:
    model = classifier(name, KIND).double()
    draws = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, 32, 32, generator=draws, dtype=torch.float64)
    target = torch.randint(0, 2, (3, 5), generator=draws).double()
    size = said(model, movable(model, True), pixels, KIND, sees.features).shape[1]
    with seeded(0, "h"):
        h = MetaLoss(size, 5, 2, sees).double().train()
    data = torch.randn(4, 3, 32, 32, generator=draws, dtype=torch.float64)
    labels = torch.randint(0, 2, (4, 5), generator=draws).double()
    return model, h, Photos(pixels, target, torch.tensor([0, 1, 2]) if sees.identity else None), data, labels


def objective_value(model: torch.nn.Module, theta: Weights, data: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = torch.func.functional_call(model, theta, kwargs={"pixel_values": data}).logits
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)


def objective(data: torch.Tensor, labels: torch.Tensor) -> Callable[[torch.nn.Module, Weights], tuple[float, Weights]]:
    def call(model: torch.nn.Module, theta_u: Weights) -> tuple[float, Weights]:
        leaves = {n: p.detach().requires_grad_() for n, p in theta_u.items()}
        value = objective_value(model, leaves, data, labels)
        parts = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        return value.item(), {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(leaves.items(), parts, strict=True)}

    return call


def ours(here: Setting, length: float, normalised: bool, steps: int) -> tuple[float, torch.Tensor, float]:
    model, h, photos, data, labels = here
    value, parts, by_length = meta_gradient(
        model, movable(model, True), h, photos, objective(data, labels), KIND,
        length=length, normalised=normalised, seed=SEED, steps=steps,
    )  # fmt: skip
    return value, torch.cat([p.flatten() for p in parts]), by_length


def double_backward(here: Setting, length: float, normalised: bool, steps: int) -> tuple[float, torch.Tensor, float]:
    """The same from the definition: one graph through all steps, differentiated as a whole. Dropout draws from the same seed."""
    model, h, photos, data, labels = here
    theta = {n: p.clone().requires_grad_() for n, p in movable(model, True).items()}
    r = torch.tensor(length, dtype=torch.float64, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH), seeded(SEED, "mask"):
        for _ in range(steps):
            u = said(model, theta, photos.pixels, KIND)
            u = u if h.sees.features else u[:, :5]  # the probabilities
            m = h(u, photos.target, photos.person).mean()
            parts = torch.autograd.grad(m, list(theta.values()), create_graph=True, allow_unused=True)
            g = {n: torch.zeros_like(p) if part is None else part for (n, p), part in zip(theta.items(), parts, strict=True)}
            factor = r / steps / norm(g) if normalised else r
            theta = {n: p - factor * g[n] for n, p in theta.items()}
        value = objective_value(model, theta, data, labels)
        *parts, by_length = torch.autograd.grad(value, [*h.parameters(), r], allow_unused=True)
    flat = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(h.parameters(), parts, strict=True)])
    return value.item(), flat, by_length.item()


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    assert b.norm() > 0
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("name", ["vit", "dinov2", "swin", "convnext", "resnet"])
def test_equals_double_backward(name: str, normalised: bool, steps: int) -> None:
    here = setting(name)
    value, flat, by_length = ours(here, 0.3, normalised, steps)
    expected_value, expected, expected_by_length = double_backward(here, 0.3, normalised, steps)
    assert value == pytest.approx(expected_value, rel=1e-12)
    assert off(flat, expected) < 1e-10
    assert by_length == (pytest.approx(expected_by_length, rel=1e-9) if normalised else 0)


@pytest.mark.parametrize("sees", SEEN.values(), ids=SEEN)
def test_equals_double_backward_whatever_h_sees(sees: Sees) -> None:
    here = setting("vit", sees)
    for normalised, steps in ((True, 2), (False, 2), (True, 1)):
        _, flat, by_length = ours(here, 0.3, normalised, steps)
        _, expected, expected_by_length = double_backward(here, 0.3, normalised, steps)
        assert off(flat, expected) < 1e-10
        assert by_length == (pytest.approx(expected_by_length, rel=1e-9) if normalised else 0)


@pytest.mark.parametrize(
    ("sees", "size"),
    zip(SEEN.values(), [5 + 24 + 5 + 64, 5 + 5 + 64, 5 + 24 + 5, 5 + 24 + 64, 5], strict=True),
    ids=SEEN,
)
def test_what_h_does_not_see_has_no_place_in_its_input(sees: Sees, size: int) -> None:
    _, h, *_ = setting("vit", sees)
    assert h.network[0].in_features == size
    assert any(name.startswith("embedding") for name in h.state_dict()) == sees.identity


@pytest.mark.parametrize("normalised", [False, True])
def test_leaving_out_the_hessian_is_wrong(normalised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong version: each step's own part alone, as if the later gradients did not depend on where the earlier steps lead."""

    def nothing(model, step, h, photos, kind, v, by_u):
        return {name: torch.zeros_like(part) for name, part in v.items()}

    monkeypatch.setattr(meta_loss, "_hessian_product", nothing)
    here = setting("vit")
    assert off(ours(here, 0.3, normalised, 1)[1], double_backward(here, 0.3, normalised, 1)[1]) < 1e-10
    assert off(ours(here, 0.3, normalised, 2)[1], double_backward(here, 0.3, normalised, 2)[1]) > (1e-2 if normalised else 1e-4)


def test_the_hessian_of_h_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong version: the model's curvature alone, du taken as a constant."""
    right = meta_loss._hessian_product
    monkeypatch.setattr(meta_loss, "_hessian_product", lambda *given: right(*given[:-1], torch.zeros_like(given[-1])))
    here = setting("vit")
    assert off(ours(here, 0.3, True, 2)[1], double_backward(here, 0.3, True, 2)[1]) > 1e-4


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_step_needs_no_hessian_and_each_further_one_a_single_product(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    right = meta_loss._hessian_product
    monkeypatch.setattr(meta_loss, "_hessian_product", lambda *given: calls.append(1) or right(*given))
    ours(setting("vit"), 0.3, True, steps)
    assert len(calls) == steps - 1


def test_each_step_has_a_dropout_mask_of_its_own() -> None:
    """The wrong version: the same mask in every step."""
    model, h, photos, *_ = setting("vit")
    theta = movable(model, True)
    with seeded(SEED, "mask"):
        path = walk(model, theta, h, photos, KIND, length=0.3, normalised=True, steps=2)
    with seeded(SEED, "mask"):
        again = walk(model, path[0].end, h, photos, KIND, length=0.15, normalised=True)
    assert torch.equal(again[0].u, path[1].u)
    assert off(again[0].du, path[1].du) > 0.1


def test_dropout_acts() -> None:
    model, h, photos, *_ = setting("vit")
    theta = movable(model, True)
    steps = []
    for seed in (1, 2):
        with seeded(seed, "mask"):
            steps.append(walk(model, theta, h, photos, KIND, length=1.0, normalised=True)[0].g)
    assert inner(steps[0], steps[1]) < norm(steps[0]) * norm(steps[1]) * 0.9999


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_uphill_leads_to_the_end_of_the_path(steps: int, normalised: bool) -> None:
    model, h, photos, *_ = setting("vit")
    theta = movable(model, True)
    path = walk(model, theta, h.eval(), photos, KIND, length=0.3, normalised=normalised, steps=steps)
    assert len(path) == steps
    way = uphill(path)
    for name, p in theta.items():
        torch.testing.assert_close(p - path[-1].by_g * way[name], path[-1].end[name], rtol=1e-12, atol=1e-14)
    if normalised:  # equal steps, whose lengths add up to that of the path
        for step in path:
            assert step.by_g * norm(step.g).item() == pytest.approx(0.3 / steps, rel=1e-12)
    if steps == 1:
        assert way is path[0].g
