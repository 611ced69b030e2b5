"""The meta-gradient against double backward through the model, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from oneshui_hf.methods import OneshuiError, Weights, inner, norm, seeded
from oneshui_plugins.metaunlearn import loss_network
from oneshui_plugins.metaunlearn.loss_network import (
    ALL_INPUTS,
    MetaLoss,
    MetaLossInputs,
    StepSize,
    SupportImages,
    layer_of,
    meta_gradient,
    outputs,
    step_groups,
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


def make_size(theta: Weights, length: float, normalised: bool) -> StepSize:
    return StepSize.normalised(length, theta) if normalised else StepSize.raw(length)


def exact_gradient(setting: Setting, length: float, normalised: bool, steps: int) -> tuple[float, torch.Tensor, float]:
    theta = trainable_parameters(setting[0], True)
    value, flat, (by_length,) = gradient_for_size(setting, make_size(theta, length, normalised), steps)
    return value, flat, by_length


def gradient_for_size(setting: Setting, size: StepSize, steps: int) -> tuple[float, torch.Tensor, list[float]]:
    model, h, images, data, labels = setting
    objective = make_objective(data, labels)
    value, parts, by_length = meta_gradient(
        model, trainable_parameters(model, True), h, images, objective, KIND, size, seed=SEED, steps=steps
    )
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
        path = unlearning_steps(model, theta, h, images, KIND, StepSize.normalised(0.3, theta), steps=2)
    with seeded(SEED, "mask"):
        again = unlearning_steps(model, path[0].theta_next, h, images, KIND, StepSize.normalised(0.15, theta))
    assert torch.equal(again[0].u, path[1].u)
    assert relative_error(again[0].du, path[1].du) > 0.1


def test_dropout_is_active() -> None:
    model, h, images, *_ = make_setting("vit")
    theta = trainable_parameters(model, True)
    steps = []
    for seed in (1, 2):
        with seeded(seed, "mask"):
            steps.append(unlearning_steps(model, theta, h, images, KIND, StepSize.normalised(1.0, theta))[0].g)
    assert inner(steps[0], steps[1]) < norm(steps[0]) * norm(steps[1]) * 0.9999


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_total_update_leads_to_the_end_of_the_path(steps: int, normalised: bool) -> None:
    model, h, images, *_ = make_setting("vit")
    theta = trainable_parameters(model, True)
    path = unlearning_steps(model, theta, h.eval(), images, KIND, make_size(theta, 0.3, normalised), steps)
    assert len(path) == steps
    update = total_update(path)
    for name, p in theta.items():
        torch.testing.assert_close(p - update[name], path[-1].theta_next[name], rtol=1e-12, atol=1e-14)
    if normalised:  # equal steps whose lengths add up to the length of the path
        for step in path:
            (eta,) = set(step.eta.values())
            assert eta * norm(step.g).item() == pytest.approx(0.3 / steps, rel=1e-12)


# A length per layer.


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("vit", ["vit.embeddings", "vit.layers.0", "vit.layers.1", "vit.layernorm", "classifier"]),
        ("dinov2", ["dinov2.embeddings", "dinov2.encoder.layer.0", "dinov2.encoder.layer.1", "dinov2.layernorm", "classifier"]),
    ],
)
def test_layers_are_the_blocks_and_what_is_around_them(name: str, layers: list[str]) -> None:
    theta = trainable_parameters(classifier(name, KIND), True)
    groups = step_groups(theta, "layer")
    assert {layer_of(n): index for n, index in groups.items()} == {layer: index for index, layer in enumerate(layers)}
    assert set(step_groups(theta, "model").values()) == {0}
    # Other architectures have more than three groups, and each of them has a parameter.
    for other in ("swin", "convnext", "resnet"):
        groups = step_groups(trainable_parameters(classifier(other, KIND), True), "layer")
        assert sorted(set(groups.values())) == list(range(max(groups.values()) + 1))
        assert max(groups.values()) >= 3


def layer_sizes(setting: Setting) -> StepSize:
    groups = step_groups(trainable_parameters(setting[0], True), "layer")
    return StepSize(tuple(0.1 + 0.07 * group for group in range(max(groups.values()) + 1)), groups)


@pytest.mark.parametrize("steps", [1, 2])
def test_lengths_by_layer_have_the_gradient_of_finite_differences(steps: int) -> None:
    setting = make_setting("vit")
    size = layer_sizes(setting)
    value, flat, by_length = gradient_for_size(setting, size, steps)

    def value_at(lengths: list[float]) -> float:
        return gradient_for_size(setting, StepSize(tuple(lengths), size.group_of), steps)[0]

    for group in range(len(size.lengths)):
        up, down = ([r + sign * 1e-4 * (index == group) for index, r in enumerate(size.lengths)] for sign in (1, -1))
        assert by_length[group] == pytest.approx((value_at(up) - value_at(down)) / 2e-4, rel=1e-5)
    assert min(map(abs, by_length)) > 1e-5
    # The derivative by phi, along its own direction.
    h = setting[1]
    shapes = [p.shape for p in h.parameters()]
    parts = [part.view(shape) for part, shape in zip(flat.split([shape.numel() for shape in shapes]), shapes, strict=True)]
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, part in zip(h.parameters(), parts, strict=True):
                p += sign * 1e-4 * part / flat.norm()
        values.append(value_at(list(size.lengths)))
        with torch.no_grad():
            for p, part in zip(h.parameters(), parts, strict=True):
                p -= sign * 1e-4 * part / flat.norm()
    assert (values[0] - values[1]) / 2e-4 == pytest.approx(flat.norm().item(), rel=1e-5)
    assert value == pytest.approx(sum(values) / 2, rel=1e-6)


def test_equal_shares_of_the_gradient_by_layer_are_one_length() -> None:
    """Lengths r ||g_l|| / ||g|| give the step of one length r."""
    model, h, images, *_ = make_setting("vit")
    theta, groups = trainable_parameters(model, True), step_groups(trainable_parameters(model, True), "layer")
    (one,) = unlearning_steps(model, theta, h.eval(), images, KIND, StepSize.normalised(0.3, theta))
    sizes = [norm({n: one.g[n] for n in groups if groups[n] == group}) for group in range(max(groups.values()) + 1)]
    lengths = tuple(0.3 * (size / norm(one.g)).item() for size in sizes)
    (by_layer,) = unlearning_steps(model, theta, h, images, KIND, StepSize(lengths, groups))
    for name in theta:
        torch.testing.assert_close(by_layer.theta_next[name], one.theta_next[name], rtol=1e-12, atol=1e-14)


def test_a_layer_without_gradient_is_not_updated_and_a_gradient_of_zero_raises() -> None:
    size = StepSize((0.5, 0.5), {"a": 0, "b": 1})
    g = {"a": torch.zeros(2), "b": torch.tensor([3.0, 4.0])}
    assert size.factors(g, 2) == ({"a": 0.0, "b": 0.05}, [0.0, 5.0])
    for bad in (0.0, float("nan"), float("inf")):
        with pytest.raises(OneshuiError, match="zero or not finite"):
            size.factors({"a": torch.zeros(2), "b": torch.full((2,), bad)}, 1)
