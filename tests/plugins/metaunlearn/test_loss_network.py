"""The meta-gradient against double backward through the model, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from oneshui_hf.methods import Weights, inner, norm, seeded
from oneshui_plugins.metaunlearn import loss_network
from oneshui_plugins.metaunlearn.loss_network import (
    ALL_INPUTS,
    MetaLoss,
    MetaLossInputs,
    SupportImages,
    meta_gradient,
    outputs,
    total_update,
    trainable_parameters,
    unlearning_steps,
)
from support.architectures import classifier

KIND = "multi_label"
SEED = 7
INPUTS = {
    "all": ALL_INPUTS,
    "no features": MetaLossInputs(features=False),
    "no identity": MetaLossInputs(identity=False),
    "no targets": MetaLossInputs(targets=False),
    "probabilities alone": MetaLossInputs(features=False, identity=False, targets=False),
}
Setting = tuple[torch.nn.Module, MetaLoss, SupportImages, torch.Tensor, torch.Tensor]


def make_setting(name: str, inputs: MetaLossInputs = ALL_INPUTS) -> Setting:
    model = classifier(name, KIND).double()
    rng = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, 32, 32, generator=rng, dtype=torch.float64)
    targets = torch.randint(0, 2, (3, 5), generator=rng).double()
    size = outputs(model, trainable_parameters(model, True), pixels, KIND, inputs.features).shape[1]
    with seeded(0, "h"):
        h = MetaLoss(size, 5, 2, inputs).double().train()
    data = torch.randn(4, 3, 32, 32, generator=rng, dtype=torch.float64)
    labels = torch.randint(0, 2, (4, 5), generator=rng).double()
    return model, h, SupportImages(pixels, targets, torch.tensor([0, 1, 2]) if inputs.identity else None), data, labels


def objective_value(model: torch.nn.Module, theta: Weights, data: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = torch.func.functional_call(model, theta, kwargs={"pixel_values": data}).logits
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)


def make_objective(data: torch.Tensor, labels: torch.Tensor) -> Callable[[torch.nn.Module, Weights], tuple[float, Weights]]:
    def call(model: torch.nn.Module, theta_u: Weights) -> tuple[float, Weights]:
        leaves = {n: p.detach().requires_grad_() for n, p in theta_u.items()}
        value = objective_value(model, leaves, data, labels)
        parts = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        return value.item(), {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(leaves.items(), parts, strict=True)}

    return call


def exact_gradient(setting: Setting, length: float, normalised: bool, steps: int) -> tuple[float, torch.Tensor, float]:
    model, h, images, data, labels = setting
    value, parts, by_length = meta_gradient(
        model, trainable_parameters(model, True), h, images, make_objective(data, labels), KIND,
        length=length, normalised=normalised, seed=SEED, steps=steps,
    )  # fmt: skip
    return value, torch.cat([p.flatten() for p in parts]), by_length


def double_backward(setting: Setting, length: float, normalised: bool, steps: int) -> tuple[float, torch.Tensor, float]:
    """Return the same by definition: differentiate one graph through all steps. Dropout uses the same seed."""
    model, h, images, data, labels = setting
    theta = {n: p.clone().requires_grad_() for n, p in trainable_parameters(model, True).items()}
    r = torch.tensor(length, dtype=torch.float64, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH), seeded(SEED, "mask"):
        for _ in range(steps):
            u = outputs(model, theta, images.pixels, KIND)
            u = u if h.inputs.features else u[:, :5]  # the probabilities
            m = h(u, images.targets, images.identity_rows).mean()
            parts = torch.autograd.grad(m, list(theta.values()), create_graph=True, allow_unused=True)
            g = {n: torch.zeros_like(p) if part is None else part for (n, p), part in zip(theta.items(), parts, strict=True)}
            factor = r / steps / norm(g) if normalised else r
            theta = {n: p - factor * g[n] for n, p in theta.items()}
        value = objective_value(model, theta, data, labels)
        *parts, by_length = torch.autograd.grad(value, [*h.parameters(), r], allow_unused=True)
    flat = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(h.parameters(), parts, strict=True)])
    return value.item(), flat, by_length.item()


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    assert b.norm() > 0
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("name", ["vit", "dinov2", "swin", "convnext", "resnet"])
def test_equals_double_backward(name: str, normalised: bool, steps: int) -> None:
    setting = make_setting(name)
    value, flat, by_length = exact_gradient(setting, 0.3, normalised, steps)
    expected_value, expected, expected_by_length = double_backward(setting, 0.3, normalised, steps)
    assert value == pytest.approx(expected_value, rel=1e-12)
    assert relative_error(flat, expected) < 1e-10
    assert by_length == (pytest.approx(expected_by_length, rel=1e-9) if normalised else 0)


@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
def test_equals_double_backward_for_all_inputs_of_h(inputs: MetaLossInputs) -> None:
    setting = make_setting("vit", inputs)
    for normalised, steps in ((True, 2), (False, 2), (True, 1)):
        _, flat, by_length = exact_gradient(setting, 0.3, normalised, steps)
        _, expected, expected_by_length = double_backward(setting, 0.3, normalised, steps)
        assert relative_error(flat, expected) < 1e-10
        assert by_length == (pytest.approx(expected_by_length, rel=1e-9) if normalised else 0)


@pytest.mark.parametrize(
    ("inputs", "size"),
    zip(INPUTS.values(), [5 + 24 + 5 + 64, 5 + 5 + 64, 5 + 24 + 5, 5 + 24 + 64, 5], strict=True),
    ids=INPUTS,
)
def test_h_has_no_columns_for_inputs_it_lacks(inputs: MetaLossInputs, size: int) -> None:
    _, h, *_ = make_setting("vit", inputs)
    assert h.network[0].in_features == size
    assert any(name.startswith("embedding") for name in h.state_dict()) == inputs.identity


@pytest.mark.parametrize("normalised", [False, True])
def test_the_hessian_product_is_needed_for_more_than_one_step(normalised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong version: only each step's own term, as if later gradients did not depend on earlier steps."""

    def zero(model, step, h, images, kind, v, by_u):
        return {name: torch.zeros_like(part) for name, part in v.items()}

    monkeypatch.setattr(loss_network, "_hessian_product", zero)
    setting = make_setting("vit")
    assert relative_error(exact_gradient(setting, 0.3, normalised, 1)[1], double_backward(setting, 0.3, normalised, 1)[1]) < 1e-10
    assert relative_error(exact_gradient(setting, 0.3, normalised, 2)[1], double_backward(setting, 0.3, normalised, 2)[1]) > (
        1e-2 if normalised else 1e-4
    )


def test_the_hessian_product_includes_the_curvature_of_h(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong version: only the model's curvature, with du as a constant."""
    original = loss_network._hessian_product
    monkeypatch.setattr(loss_network, "_hessian_product", lambda *given: original(*given[:-1], torch.zeros_like(given[-1])))
    setting = make_setting("vit")
    assert relative_error(exact_gradient(setting, 0.3, True, 2)[1], double_backward(setting, 0.3, True, 2)[1]) > 1e-4


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_each_step_except_the_first_needs_one_hessian_product(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = loss_network._hessian_product
    monkeypatch.setattr(loss_network, "_hessian_product", lambda *given: calls.append(1) or original(*given))
    exact_gradient(make_setting("vit"), 0.3, True, steps)
    assert len(calls) == steps - 1


def test_each_step_has_its_own_dropout_mask() -> None:
    """The wrong version: the same mask in every step."""
    model, h, images, *_ = make_setting("vit")
    theta = trainable_parameters(model, True)
    with seeded(SEED, "mask"):
        path = unlearning_steps(model, theta, h, images, KIND, length=0.3, normalised=True, steps=2)
    with seeded(SEED, "mask"):
        again = unlearning_steps(model, path[0].theta_next, h, images, KIND, length=0.15, normalised=True)
    assert torch.equal(again[0].u, path[1].u)
    assert relative_error(again[0].du, path[1].du) > 0.1


def test_dropout_is_active() -> None:
    model, h, images, *_ = make_setting("vit")
    theta = trainable_parameters(model, True)
    steps = []
    for seed in (1, 2):
        with seeded(seed, "mask"):
            steps.append(unlearning_steps(model, theta, h, images, KIND, length=1.0, normalised=True)[0].g)
    assert inner(steps[0], steps[1]) < norm(steps[0]) * norm(steps[1]) * 0.9999


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_total_update_leads_to_the_end_of_the_path(steps: int, normalised: bool) -> None:
    model, h, images, *_ = make_setting("vit")
    theta = trainable_parameters(model, True)
    path = unlearning_steps(model, theta, h.eval(), images, KIND, length=0.3, normalised=normalised, steps=steps)
    assert len(path) == steps
    update = total_update(path)
    for name, p in theta.items():
        torch.testing.assert_close(p - path[-1].eta * update[name], path[-1].theta_next[name], rtol=1e-12, atol=1e-14)
    if normalised:  # equal steps whose lengths add up to the length of the path
        for step in path:
            assert step.eta * norm(step.g).item() == pytest.approx(0.3 / steps, rel=1e-12)
    if steps == 1:
        assert update is path[0].g
