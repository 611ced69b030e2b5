"""JiT against closed forms of a linear model in float64, and on small models of every architecture."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import DataAccess, Request, generator
from oneshui_hf.testing.toy_problem import World, world
from oneshui_plugins.jit import JiT, JiTOptions, penalty
from support.linear_model import ARCHITECTURES, KINDS, Linear, classifier, context, linear, photos


def forget(model: torch.nn.Module, pixels: torch.Tensor, where: Any = None, **options: Any) -> torch.nn.Module:
    request = Request(pixels, (None,) * len(pixels), torch.zeros(len(pixels), 5), labels_given=False)
    return JiT().apply(model, DataAccess({"support": request}, JiT.needs.apply), None, JiTOptions(**options), where or context())


def noise_of(number: int, pixels: torch.Tensor, options: JiTOptions) -> torch.Tensor:
    """The noise of a photo of a request with seed 0."""
    draws = generator(0, "noise", number)
    return options.sigma * torch.randn(options.copies, *pixels.shape[1:], dtype=pixels.dtype, generator=draws)


def by_hand(weight: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """f(x) = W x + b: the penalty is the mean of ||W xi|| / ||xi||, its gradient that of W xi xi^T / (||W xi|| ||xi||)."""
    values, gradients = [], []
    for xi in noise.flatten(1):
        image = weight @ xi
        values.append(math.sqrt((image @ image).item()) / math.sqrt((xi @ xi).item()))
        gradients.append(torch.outer(image, xi) / ((image @ image).sqrt() * (xi @ xi).sqrt()))
    return torch.tensor(values).mean(), torch.stack(gradients).mean(0)


def test_the_penalty_and_its_gradient_of_a_linear_model_are_known_in_closed_form() -> None:
    model, (pixels, _) = linear(), photos(1, side=2)
    noise = noise_of(0, pixels, JiTOptions())
    value = penalty(model, pixels[0], noise)
    expected, gradient = by_hand(model.map.weight.detach(), noise)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    found = torch.autograd.grad(value, [model.map.weight, model.map.bias])
    torch.testing.assert_close(found[0], gradient, rtol=1e-12, atol=1e-15)
    assert found[1].abs().max() < 1e-15  # the bias moves photo and copies alike


def test_the_gradient_goes_through_the_photo_itself_too() -> None:
    """Against central differences on a model that is not linear."""
    model, (pixels, _) = classifier("convnext"), photos(1)
    noise = noise_of(0, pixels, JiTOptions(copies=3))
    parameter = model.classifier.weight
    (gradient,) = torch.autograd.grad(penalty(model, pixels[0], noise), [parameter])
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    values = []
    for side in (1e-5, -1e-5):
        with torch.no_grad():
            parameter += side * direction
            values.append(penalty(model, pixels[0], noise).item())
            parameter -= side * direction
    assert (gradient * direction).sum().item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


def steps(model: Linear, pixels: torch.Tensor, options: JiTOptions, zeroed: bool) -> torch.Tensor:
    """The weight after a step a photo; where gradients are never zeroed, as elsewhere, a step is made of all gradients so far."""
    weight = model.map.weight.detach().clone()
    gradient = torch.zeros_like(weight)
    for number in range(len(pixels)):
        gradient = by_hand(weight, noise_of(number, pixels, options))[1] + (0 if zeroed else gradient)
        weight -= options.lr * gradient
    return weight


def test_each_photo_gives_a_step_of_its_own_gradient_and_not_of_all_so_far() -> None:
    model, (pixels, _), options = linear(), photos(3, side=2), JiTOptions(lr=0.1)
    new = forget(model, pixels, lr=0.1)
    torch.testing.assert_close(new.map.weight.detach(), steps(model, pixels, options, zeroed=True), rtol=1e-12, atol=1e-14)
    wrong = steps(model, pixels, options, zeroed=False)
    assert (new.map.weight - wrong).norm() > 0.5 * (new.map.weight - model.map.weight).norm()
    torch.testing.assert_close(new.map.bias, model.map.bias)
    assert torch.equal(new.dead, model.dead)  # takes part in nothing


def test_the_noise_is_gaussian_of_the_given_deviation_and_new_for_every_photo() -> None:
    seen: list[torch.Tensor] = []

    class Spy(Linear):
        def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
            seen.append(pixel_values.detach().clone())
            return super().forward(pixel_values)

    pixels, _ = photos(2, side=20)
    forget(Spy(inputs=1200).double(), pixels, copies=9, sigma=0.7)
    noises = []
    for photo, (whole, *copies) in zip(pixels, seen, strict=True):
        assert torch.equal(whole, photo)
        assert len(copies) == 9
        noises.append(torch.stack(copies) - photo)
    noise = torch.stack(noises)
    assert noise.std().item() == pytest.approx(0.7, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert (noise / 0.7).pow(4).mean().item() == pytest.approx(3, rel=0.05)  # the normal distribution's
    flat = noise.flatten(0, 1).flatten(1)
    correlations = flat @ flat.T / (flat.norm(dim=1).unsqueeze(1) * flat.norm(dim=1)) - torch.eye(18)
    assert correlations.abs().max() < 0.15


def test_the_report_has_the_mean_penalty_before_each_step() -> None:
    model, (pixels, _), where = linear(), photos(2, side=2), context()
    forget(model, pixels, where, lr=0.0)
    expected = [by_hand(model.map.weight.detach(), noise_of(number, pixels, JiTOptions()))[0].item() for number in range(2)]
    assert where.report == {"penalty": pytest.approx(sum(expected) / 2, rel=1e-6)}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_penalty_falls_and_the_model_handed_in_stays(name: str) -> None:
    model, (pixels, _) = classifier(name), photos(2)
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
    noise = noise_of(9, pixels, JiTOptions())  # another draw
    with torch.no_grad():
        for photo in pixels:
            assert penalty(new.eval(), photo, noise) < penalty(model.eval(), photo, noise)


def test_dropout_does_not_act() -> None:
    model, (pixels, _) = classifier("vit"), photos(2)
    resting, training = forget(model, pixels, copies=4), forget(model.train(), pixels, copies=4)
    assert all(torch.equal(a, b) for a, b in zip(resting.parameters(), training.parameters(), strict=True))


def test_the_same_seed_gives_the_same_bytes_and_another_different_ones() -> None:
    model, (pixels, _) = classifier("vit"), photos(2)
    torch.manual_seed(1)
    first = forget(model, pixels, copies=4)
    torch.manual_seed(2)
    second = forget(model, pixels, copies=4)
    where = context()
    where.seed = 1
    other = forget(model, pixels, where, copies=4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_forgetting_smooths_and_the_loss_on_the_people_rises(kind: str) -> None:
    here: World = world(kind)
    new = JiT().apply(here.model, DataAccess({"support": here.request}, JiT.needs.apply), None, JiTOptions(lr=0.2), here.context())
    noise = noise_of(9, here.request.pixels, JiTOptions())
    with torch.no_grad():
        for photo in here.request.pixels:
            assert penalty(new, photo, noise) < penalty(here.model, photo, noise)
    rise = {name: here.loss(new, name) - here.loss(here.model, name) for name in ("support", "forget")}
    assert max(rise.values()) > 1e-3


def test_a_model_that_says_the_same_of_everything_is_left_alone() -> None:
    model, (pixels, _) = linear(), photos(2, side=2)
    with torch.no_grad():
        model.map.weight.zero_()
    new = forget(model, pixels)  # ||f(x) - f(x + xi)|| has no derivative at 0
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), model.parameters(), strict=True))


def test_weights_that_ran_away_are_refused() -> None:
    model, (pixels, _) = linear(), photos(2, side=2)
    with pytest.raises(OneshuiError, match=r"not finite; take a smaller --lr than 1e\+308"):
        forget(model, pixels, lr=1e308)


def test_options() -> None:
    options = JiTOptions()
    assert (options.copies, options.lr, options.sigma) == (25, 0.01, 0.5)
    assert JiT.preset("paper", "celeba", 5) == {"copies": 25, "lr": 0.01, "sigma": 0.5}
    assert JiT.prepares == "never"
    assert JiT.needs.one_shot
    for wrong in ({"sigma": 0}, {"copies": 0}, {"lr": -1}):
        with pytest.raises(UsageError, match="must be at least"):
            JiT.apply_options("jit", {}, wrong)
