"""JiT against the closed forms of a linear model in float64, and on small models of every architecture."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import DataAccess, Request, generator
from oneshui_hf.testing.toy_problem import ToyProblem, toy_problem
from oneshui_plugins.jit import JiT, JiTOptions, lipschitz_penalty
from support.linear_model import ARCHITECTURES, KINDS, Linear, classifier, context, linear_model, random_photos


def forget(model: torch.nn.Module, pixels: torch.Tensor, ctx: Any = None, **options: Any) -> torch.nn.Module:
    request = Request(pixels, (None,) * len(pixels), torch.zeros(len(pixels), 5), labels_given=False)
    return JiT().apply(model, DataAccess({"support": request}, JiT.needs.apply), None, JiTOptions(**options), ctx or context())


def noise_of(number: int, pixels: torch.Tensor, options: JiTOptions) -> torch.Tensor:
    """Return the noise of a photo of a request with seed 0."""
    rng = generator(0, "noise", number)
    return options.sigma * torch.randn(options.copies, *pixels.shape[1:], dtype=pixels.dtype, generator=rng)


def penalty_in_closed_form(weight: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return penalty and gradient for f(x) = W x + b: the means of ||W xi|| / ||xi|| and of W xi xi^T / (||W xi|| ||xi||)."""
    values, gradients = [], []
    for xi in noise.flatten(1):
        image = weight @ xi
        values.append(math.sqrt((image @ image).item()) / math.sqrt((xi @ xi).item()))
        gradients.append(torch.outer(image, xi) / ((image @ image).sqrt() * (xi @ xi).sqrt()))
    return torch.tensor(values).mean(), torch.stack(gradients).mean(0)


def test_penalty_and_gradient_of_a_linear_model_have_their_closed_form() -> None:
    model, (pixels, _) = linear_model(), random_photos(1, side=2)
    noise = noise_of(0, pixels, JiTOptions())
    value = lipschitz_penalty(model, pixels[0], noise)
    expected, gradient = penalty_in_closed_form(model.map.weight.detach(), noise)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    found = torch.autograd.grad(value, [model.map.weight, model.map.bias])
    torch.testing.assert_close(found[0], gradient, rtol=1e-12, atol=1e-15)
    assert found[1].abs().max() < 1e-15  # the bias cancels in f(x) - f(x + xi)


def test_the_gradient_also_goes_through_the_clean_photo() -> None:
    """Compares with central differences on a model that is not linear."""
    model, (pixels, _) = classifier("convnext"), random_photos(1)
    noise = noise_of(0, pixels, JiTOptions(copies=3))
    parameter = model.classifier.weight
    (gradient,) = torch.autograd.grad(lipschitz_penalty(model, pixels[0], noise), [parameter])
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    values = []
    for side in (1e-5, -1e-5):
        with torch.no_grad():
            parameter += side * direction
            values.append(lipschitz_penalty(model, pixels[0], noise).item())
            parameter -= side * direction
    assert (gradient * direction).sum().item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


def weight_after_steps(model: Linear, pixels: torch.Tensor, options: JiTOptions, zeroed: bool) -> torch.Tensor:
    """Return the weight after one step per photo. Without zeroed gradients (the wrong version) a step uses all gradients so far."""
    weight = model.map.weight.detach().clone()
    gradient = torch.zeros_like(weight)
    for number in range(len(pixels)):
        gradient = penalty_in_closed_form(weight, noise_of(number, pixels, options))[1] + (0 if zeroed else gradient)
        weight -= options.lr * gradient
    return weight


def test_gradients_are_not_accumulated_over_photos() -> None:
    model, (pixels, _), options = linear_model(), random_photos(3, side=2), JiTOptions(lr=0.1)
    new = forget(model, pixels, lr=0.1)
    torch.testing.assert_close(new.map.weight.detach(), weight_after_steps(model, pixels, options, zeroed=True), rtol=1e-12, atol=1e-14)
    wrong = weight_after_steps(model, pixels, options, zeroed=False)
    assert (new.map.weight - wrong).norm() > 0.5 * (new.map.weight - model.map.weight).norm()
    torch.testing.assert_close(new.map.bias, model.map.bias)
    assert torch.equal(new.unused, model.unused)  # does not affect the output


def test_the_noise_is_gaussian_with_the_given_deviation_and_independent_per_photo() -> None:
    seen: list[torch.Tensor] = []

    class Spy(Linear):
        def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
            seen.append(pixel_values.detach().clone())
            return super().forward(pixel_values)

    pixels, _ = random_photos(2, side=20)
    forget(Spy(inputs=1200).double(), pixels, copies=9, sigma=0.7)
    noises = []
    for photo, (clean, *copies) in zip(pixels, seen, strict=True):
        assert torch.equal(clean, photo)
        assert len(copies) == 9
        noises.append(torch.stack(copies) - photo)
    noise = torch.stack(noises)
    assert noise.std().item() == pytest.approx(0.7, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert (noise / 0.7).pow(4).mean().item() == pytest.approx(3, rel=0.05)  # of the normal distribution
    flat = noise.flatten(0, 1).flatten(1)
    correlations = flat @ flat.T / (flat.norm(dim=1).unsqueeze(1) * flat.norm(dim=1)) - torch.eye(18)
    assert correlations.abs().max() < 0.15


def test_the_report_contains_the_mean_penalty_before_each_step() -> None:
    model, (pixels, _), ctx = linear_model(), random_photos(2, side=2), context()
    forget(model, pixels, ctx, lr=0.0)
    expected = [penalty_in_closed_form(model.map.weight.detach(), noise_of(number, pixels, JiTOptions()))[0].item() for number in range(2)]
    assert ctx.report == {"penalty": pytest.approx(sum(expected) / 2, rel=1e-6)}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_penalty_decreases_and_the_original_model_is_unchanged(name: str) -> None:
    model, (pixels, _) = classifier(name), random_photos(2)
    model.train()
    before, state = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    new = forget(model, pixels, lr=0.005, copies=8)
    assert model.training
    assert new.training
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in [*model.parameters(), *new.parameters()])
    assert torch.equal(torch.get_rng_state(), state)
    buffers = dict(new.named_buffers())
    assert all(torch.equal(buffers[n], tensor) for n, tensor in model.named_buffers())  # BatchNorm's statistics
    noise = noise_of(9, pixels, JiTOptions())  # another sample
    with torch.no_grad():
        for photo in pixels:
            assert lipschitz_penalty(new.eval(), photo, noise) < lipschitz_penalty(model.eval(), photo, noise)


def test_dropout_is_off() -> None:
    model, (pixels, _) = classifier("vit"), random_photos(2)
    in_eval, in_train = forget(model, pixels, copies=4), forget(model.train(), pixels, copies=4)
    assert all(torch.equal(a, b) for a, b in zip(in_eval.parameters(), in_train.parameters(), strict=True))


def test_the_result_depends_on_the_seed_alone() -> None:
    model, (pixels, _) = classifier("vit"), random_photos(2)
    torch.manual_seed(1)
    first = forget(model, pixels, copies=4)
    torch.manual_seed(2)
    second = forget(model, pixels, copies=4)
    ctx = context()
    ctx.seed = 1
    other = forget(model, pixels, ctx, copies=4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_unlearning_smooths_the_output_and_raises_the_loss(kind: str) -> None:
    problem: ToyProblem = toy_problem(kind)
    new = JiT().apply(problem.model, DataAccess({"support": problem.request}, JiT.needs.apply), None, JiTOptions(lr=0.2), problem.context())
    noise = noise_of(9, problem.request.pixels, JiTOptions())
    with torch.no_grad():
        for photo in problem.request.pixels:
            assert lipschitz_penalty(new, photo, noise) < lipschitz_penalty(problem.model, photo, noise)
    rise = {name: problem.loss(new, name) - problem.loss(problem.model, name) for name in ("support", "forget")}
    assert max(rise.values()) > 1e-3


def test_a_constant_model_is_unchanged() -> None:
    model, (pixels, _) = linear_model(), random_photos(2, side=2)
    with torch.no_grad():
        model.map.weight.zero_()
    new = forget(model, pixels)  # ||f(x) - f(x + xi)|| has no derivative at 0
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), model.parameters(), strict=True))


def test_weights_that_are_not_finite_raise() -> None:
    model, (pixels, _) = linear_model(), random_photos(2, side=2)
    with pytest.raises(OneshuiError, match=r"not finite; use a smaller --lr than 1e\+308"):
        forget(model, pixels, lr=1e308)


def test_defaults_preset_and_ranges() -> None:
    options = JiTOptions()
    assert (options.copies, options.lr, options.sigma) == (25, 0.01, 0.5)
    assert JiT.preset("paper", "celeba", 5) == {"copies": 25, "lr": 0.01, "sigma": 0.5}
    assert JiT.prepares == "never"
    assert JiT.needs.one_shot
    for wrong in ({"sigma": 0}, {"copies": 0}, {"lr": -1}):
        with pytest.raises(UsageError, match="must be at least"):
            JiT.apply_options("jit", {}, wrong)
