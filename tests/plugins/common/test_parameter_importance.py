"""Importances against a loop over photos, and dampening against its formula written out number by number."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from oneshui_hf.methods import OneshuiError, losses
from oneshui_plugins.common.parameter_importance import Weights, dampened, importances
from support.linear_model import ARCHITECTURES, KINDS, LABELS, Linear, assert_close, classifier, context, linear, photos, squared_gradients


def fisher(
    model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, kind: str = "multi_label", chunk: int = 4, **where: int
) -> Weights:
    def loss(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        return losses(logits, answers, kind)

    positions = torch.arange(len(pixels))
    return importances(model, lambda some: (pixels[some], labels[some]), positions, loss, 2, chunk, context(kind, **where))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("chunk", [1, 3])
def test_importances_are_the_mean_squared_gradient_of_single_photos(name: str, kind: str, chunk: int) -> None:
    model, (pixels, labels) = classifier(name, kind), photos(4, kind)
    assert_close(fisher(model, pixels, labels, kind, chunk), squared_gradients(model, pixels, labels, kind, batch=1))


def test_importances_of_a_linear_model_are_known_in_closed_form() -> None:
    model, (pixels, labels) = linear(), photos(7, side=2)
    x = pixels.flatten(1)
    with torch.no_grad():
        error = (torch.sigmoid(x @ model.map.weight.T + model.map.bias) - labels) / LABELS  # d loss / d logits
    found = fisher(model, pixels, labels)
    torch.testing.assert_close(found["map.weight"], (error.unsqueeze(2) * x.unsqueeze(1)).square().mean(0))
    torch.testing.assert_close(found["map.bias"], error.square().mean(0))


@pytest.mark.parametrize("kind", KINDS)
def test_importances_do_not_depend_on_the_batch_size_as_squared_batch_means_do(kind: str) -> None:
    model, (pixels, labels) = classifier("vit", kind), photos(8, kind)
    right = fisher(model, pixels, labels, kind, chunk=8)
    for chunk in (1, 2, 3, 5):
        assert_close(fisher(model, pixels, labels, kind, chunk), right)
    wrong = squared_gradients(model, pixels, labels, kind, batch=8)
    ratio = sum(part.sum() for part in wrong.values()) / sum(part.sum() for part in right.values())
    assert ratio < 0.9  # gradients of a batch cancel


def test_twice_the_same_photos_matter_as_much_as_once() -> None:
    model, (pixels, labels) = linear(), photos(3, side=2)
    assert_close(fisher(model, pixels.repeat(2, 1, 1, 1), labels.repeat(2, 1)), fisher(model, pixels, labels))


def test_processes_share_the_photos_and_their_sums_add_up() -> None:
    model, (pixels, labels) = linear(), photos(10, side=2)
    shares = [fisher(model, pixels, labels, chunk=3, process=process, processes=3) for process in range(3)]
    assert_close({name: sum(share[name] for share in shares) for name in shares[0]}, fisher(model, pixels, labels, chunk=3))
    more = [fisher(model, pixels[:3], labels[:3], chunk=3, process=process, processes=2) for process in range(2)]
    assert all((part == 0).all() for part in more[1].values())  # fewer batches than processes


@pytest.mark.parametrize("chunk", [1, 4])
def test_the_model_stays_in_its_mode_and_is_measured_without_dropout_and_with_batchnorm_at_rest(chunk: int) -> None:
    for name in ("vit", "dinov2", "resnet"):
        model, (pixels, labels) = classifier(name), photos(3)
        expected = fisher(model, pixels, labels, chunk=chunk)
        model.train()
        before, state = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
        assert_close(fisher(model, pixels, labels, chunk=chunk), expected)
        assert model.training
        assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert torch.equal(torch.get_rng_state(), state)


def test_what_is_rounding_error_alone_counts_as_nothing() -> None:
    # Softmax is blind to a constant, so the derivative by a key bias is 0; what is computed is not.
    model, (pixels, labels) = classifier("vit"), photos(4)
    noise = squared_gradients(model, pixels, labels, "multi_label", batch=1)
    found = fisher(model, pixels, labels)
    keys = [name for name in found if name.endswith("k_proj.bias")]
    assert keys
    for name in keys:
        assert noise[name].max() > 0
        assert (found[name] == 0).all()
    assert all((found[name] > 0).any() for name in found if name not in keys)


def test_a_model_that_cannot_be_vectorised_is_served_by_chunks_of_one() -> None:
    class Branching(Linear):
        def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
            return super().forward(pixel_values if pixel_values.sum() > 0 else -pixel_values)

    model, (pixels, labels) = Branching().double(), photos(3, side=2)
    with pytest.raises(
        OneshuiError, match=r"Branching cannot be differentiated for 4 photos at once \(.+\); take a smaller --chunk, down to 1"
    ):
        fisher(model, pixels, labels, chunk=4)
    assert_close(fisher(model, pixels, labels, chunk=1), squared_gradients(model, pixels, labels, "multi_label", batch=1))


def test_attention_is_plain_while_photos_are_vectorised_and_nobody_is_warned() -> None:
    class Spy(Linear):
        def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
            fused.append(torch.backends.cuda.flash_sdp_enabled())
            return super().forward(pixel_values)

    fused: list[bool] = []
    fisher(Spy().double(), *photos(4, side=2), chunk=4)
    assert fused == [False]
    assert torch.backends.cuda.flash_sdp_enabled()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        fisher(classifier("swin"), *photos(4), chunk=4)
    assert not [warning for warning in heard if "performance drop" in str(warning.message)]


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    model, (pixels, labels) = linear(), photos(3, side=2)
    for value in (float("nan"), float("inf")):
        pixels[1, 0, 0, 0] = value
        with pytest.raises(OneshuiError, match="not finite"):
            fisher(model, pixels, labels)


def random_importances(model: nn.Module, seed: int) -> Weights:
    draws = torch.Generator().manual_seed(seed)
    return {name: torch.rand(p.shape, generator=draws, dtype=torch.float64) ** 4 for name, p in model.named_parameters()}


@pytest.mark.parametrize(("selection", "dampening"), [(0.0, 1.0), (1.0, 0.1), (2.0, 3.0), (5.0, 1.0), (50.0, 2.0)])
def test_dampening_follows_its_formula(selection: float, dampening: float) -> None:
    model = linear(inputs=40)
    train, support = random_importances(model, 0), random_importances(model, 1)
    new, count = dampened(model, train, support, selection, dampening)
    expected = 0
    for name, parameter in model.named_parameters():
        for old, now, theirs, ours in zip(
            parameter.flatten().tolist(),
            dict(new.named_parameters())[name].flatten().tolist(),
            train[name].flatten().tolist(),
            support[name].flatten().tolist(),
            strict=True,
        ):
            factor = min(dampening * theirs / ours, 1) if ours > selection * theirs else 1
            assert now == pytest.approx(factor * old, rel=1e-12)
            expected += factor < 1
    assert count == expected
    assert 0 < count < sum(p.numel() for p in model.parameters())


def test_dead_parameters_stay_and_nothing_becomes_nan() -> None:
    model = linear()
    train = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    support = {name: part.clone() for name, part in train.items()}
    support["map.bias"][0] = 1.0  # matters for the support alone: gone
    for selection in (0.0, 50.0):
        new, count = dampened(model, train, support, selection, 1.0)
        assert count == 1
        assert new.map.bias[0] == 0
        assert torch.equal(new.map.bias[1:], model.map.bias[1:])
        assert torch.equal(new.map.weight, model.map.weight)
        assert torch.equal(new.dead, model.dead)


def test_the_model_to_be_dampened_stays_as_it_is() -> None:
    model = linear()
    before = {name: p.clone() for name, p in model.named_parameters()}
    new, _ = dampened(model, random_importances(model, 0), random_importances(model, 1), 1.0, 0.1)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not torch.equal(new.map.weight, model.map.weight)
    assert all(p.requires_grad and p.is_leaf for p in new.parameters())


def test_importances_of_another_model_are_refused() -> None:
    model = linear()
    right = random_importances(model, 0)
    other = random_importances(linear(inputs=27), 0)
    fewer = {name: part for name, part in right.items() if name != "dead"}
    for wrong in (other, fewer, right | {"more": torch.zeros(1)}):
        with pytest.raises(OneshuiError, match="measured on a model with other parameters than this one; prepare again"):
            dampened(model, wrong, right, 1.0, 1.0)
