"""Parameter importances against a loop over photos, and dampening against its formula, entry by entry."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from oneshui_hf.methods import OneshuiError, losses
from oneshui_plugins.common.parameter_importance import Weights, dampen, parameter_importances
from support.linear_model import (
    ARCHITECTURES,
    KINDS,
    LABELS,
    Linear,
    assert_close,
    classifier,
    context,
    linear_model,
    random_photos,
    squared_gradients,
)


def fisher(
    model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, kind: str = "multi_label", chunk: int = 4, **processes: int
) -> Weights:
    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return losses(logits, targets, kind)

    positions = torch.arange(len(pixels))
    return parameter_importances(model, lambda rows: (pixels[rows], labels[rows]), positions, loss, 2, chunk, context(kind, **processes))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("chunk", [1, 3])
def test_importance_is_the_mean_squared_gradient_of_single_photos(name: str, kind: str, chunk: int) -> None:
    model, (pixels, labels) = classifier(name, kind), random_photos(4, kind)
    assert_close(fisher(model, pixels, labels, kind, chunk), squared_gradients(model, pixels, labels, kind, batch=1))


def test_importance_in_a_linear_model_has_its_closed_form() -> None:
    model, (pixels, labels) = linear_model(), random_photos(7, side=2)
    x = pixels.flatten(1)
    with torch.no_grad():
        error = (torch.sigmoid(x @ model.map.weight.T + model.map.bias) - labels) / LABELS  # d loss / d logits
    found = fisher(model, pixels, labels)
    torch.testing.assert_close(found["map.weight"], (error.unsqueeze(2) * x.unsqueeze(1)).square().mean(0))
    torch.testing.assert_close(found["map.bias"], error.square().mean(0))


@pytest.mark.parametrize("kind", KINDS)
def test_importance_does_not_depend_on_the_batch_size(kind: str) -> None:
    model, (pixels, labels) = classifier("vit", kind), random_photos(8, kind)
    right = fisher(model, pixels, labels, kind, chunk=8)
    for chunk in (1, 2, 3, 5):
        assert_close(fisher(model, pixels, labels, kind, chunk), right)
    wrong = squared_gradients(model, pixels, labels, kind, batch=8)
    ratio = sum(part.sum() for part in wrong.values()) / sum(part.sum() for part in right.values())
    assert ratio < 0.9  # gradients within a batch cancel


def test_duplicated_photos_do_not_change_the_importance() -> None:
    model, (pixels, labels) = linear_model(), random_photos(3, side=2)
    assert_close(fisher(model, pixels.repeat(2, 1, 1, 1), labels.repeat(2, 1)), fisher(model, pixels, labels))


def test_processes_share_the_photos_and_their_sums_are_added() -> None:
    model, (pixels, labels) = linear_model(), random_photos(10, side=2)
    shares = [fisher(model, pixels, labels, chunk=3, process=process, processes=3) for process in range(3)]
    assert_close({name: sum(share[name] for share in shares) for name in shares[0]}, fisher(model, pixels, labels, chunk=3))
    idle = [fisher(model, pixels[:3], labels[:3], chunk=3, process=process, processes=2) for process in range(2)]
    assert all((part == 0).all() for part in idle[1].values())  # fewer batches than processes


@pytest.mark.parametrize("chunk", [1, 4])
def test_the_model_is_unchanged_and_is_differentiated_in_eval_mode(chunk: int) -> None:
    for name in ("vit", "dinov2", "resnet"):
        model, (pixels, labels) = classifier(name), random_photos(3)
        expected = fisher(model, pixels, labels, chunk=chunk)
        model.train()
        before, state = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
        assert_close(fisher(model, pixels, labels, chunk=chunk), expected)
        assert model.training
        assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert torch.equal(torch.get_rng_state(), state)


def test_rounding_errors_have_importance_zero() -> None:
    # Softmax is invariant to a constant, so the derivative by a key bias is 0, but its computed value is not.
    model, (pixels, labels) = classifier("vit"), random_photos(4)
    noise = squared_gradients(model, pixels, labels, "multi_label", batch=1)
    found = fisher(model, pixels, labels)
    keys = [name for name in found if name.endswith("k_proj.bias")]
    assert keys
    for name in keys:
        assert noise[name].max() > 0
        assert (found[name] == 0).all()
    assert all((found[name] > 0).any() for name in found if name not in keys)


def test_a_model_that_cannot_be_vectorised_works_with_chunks_of_one() -> None:
    class Branching(Linear):
        def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
            return super().forward(pixel_values if pixel_values.sum() > 0 else -pixel_values)

    model, (pixels, labels) = Branching().double(), random_photos(3, side=2)
    with pytest.raises(
        OneshuiError, match=r"Branching cannot be differentiated for 4 photos at once \(.+\); use a smaller --chunk, down to 1"
    ):
        fisher(model, pixels, labels, chunk=4)
    assert_close(fisher(model, pixels, labels, chunk=1), squared_gradients(model, pixels, labels, "multi_label", batch=1))


def test_attention_is_unfused_under_vmap_and_no_warning_is_shown() -> None:
    class Spy(Linear):
        def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
            flash_enabled.append(torch.backends.cuda.flash_sdp_enabled())
            return super().forward(pixel_values)

    flash_enabled: list[bool] = []
    fisher(Spy().double(), *random_photos(4, side=2), chunk=4)
    assert flash_enabled == [False]
    assert torch.backends.cuda.flash_sdp_enabled()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fisher(classifier("swin"), *random_photos(4), chunk=4)
    assert not [warning for warning in caught if "performance drop" in str(warning.message)]


def test_a_gradient_that_is_not_finite_raises() -> None:
    model, (pixels, labels) = linear_model(), random_photos(3, side=2)
    for value in (float("nan"), float("inf")):
        pixels[1, 0, 0, 0] = value
        with pytest.raises(OneshuiError, match="not finite"):
            fisher(model, pixels, labels)


def random_importances(model: nn.Module, seed: int) -> Weights:
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.rand(p.shape, generator=rng, dtype=torch.float64) ** 4 for name, p in model.named_parameters()}


@pytest.mark.parametrize(("selection", "dampening"), [(0.0, 1.0), (1.0, 0.1), (2.0, 3.0), (5.0, 1.0), (50.0, 2.0)])
def test_dampening_follows_its_formula(selection: float, dampening: float) -> None:
    model = linear_model(inputs=40)
    train, support = random_importances(model, 0), random_importances(model, 1)
    new, count = dampen(model, train, support, selection, dampening)
    expected = 0
    for name, parameter in model.named_parameters():
        for old, after, i_train, i_support in zip(
            parameter.flatten().tolist(),
            dict(new.named_parameters())[name].flatten().tolist(),
            train[name].flatten().tolist(),
            support[name].flatten().tolist(),
            strict=True,
        ):
            factor = min(dampening * i_train / i_support, 1) if i_support > selection * i_train else 1
            assert after == pytest.approx(factor * old, rel=1e-12)
            expected += factor < 1
    assert count == expected
    assert 0 < count < sum(p.numel() for p in model.parameters())


def test_unused_parameters_are_unchanged_and_no_entry_becomes_nan() -> None:
    model = linear_model()
    train = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    support = {name: part.clone() for name, part in train.items()}
    support["map.bias"][0] = 1.0  # important for the support images alone, so it becomes 0
    for selection in (0.0, 50.0):
        new, count = dampen(model, train, support, selection, 1.0)
        assert count == 1
        assert new.map.bias[0] == 0
        assert torch.equal(new.map.bias[1:], model.map.bias[1:])
        assert torch.equal(new.map.weight, model.map.weight)
        assert torch.equal(new.unused, model.unused)


def test_dampening_does_not_change_the_original_model() -> None:
    model = linear_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    new, _ = dampen(model, random_importances(model, 0), random_importances(model, 1), 1.0, 0.1)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not torch.equal(new.map.weight, model.map.weight)
    assert all(p.requires_grad and p.is_leaf for p in new.parameters())


def test_importances_of_another_model_raise() -> None:
    model = linear_model()
    right = random_importances(model, 0)
    other_shape = random_importances(linear_model(inputs=27), 0)
    fewer = {name: part for name, part in right.items() if name != "unused"}
    for wrong in (other_shape, fewer, right | {"more": torch.zeros(1)}):
        with pytest.raises(OneshuiError, match="measured on a model with other parameters than this one; prepare again"):
            dampen(model, wrong, right, 1.0, 1.0)
