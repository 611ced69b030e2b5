"""PGU: steps that raise the loss of the support images without an effect on the training photos."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Artefact, DataAccess, Request, losses, norm, parameters, seeded
from oneshui_plugins.common.input_covariance import core_space, projectable_layers
from oneshui_plugins.pgu import PGU, PGUOptions
from support.architectures import classifier
from support.projection_models import (
    Flat,
    Tokens,
    Twice,
    context,
    covariances_of,
    labels_for,
    low_rank,
    mean_outer_product,
    model_output,
    noise,
)


class Photos:
    """A set of photos with the interface that methods use, in any precision."""

    def __init__(self, pixels: torch.Tensor, labels: torch.Tensor | None = None) -> None:
        self.pixels, self.labels = pixels, labels_for(len(pixels), "multi_label") if labels is None else labels

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, positions: torch.Tensor, device: Any = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        return self.pixels[positions], self.labels[positions]


def prepare(model: nn.Module, pixels: torch.Tensor, chunk: int = 3, kind: str = "multi_label") -> Artefact:
    data = DataAccess({"train": Photos(pixels)}, frozenset({"train"}))
    return PGU().prepare(model, data, PGUOptions(chunk=chunk), context(kind))


def apply(
    model: nn.Module, artefact: Artefact, pixels: torch.Tensor, labels: torch.Tensor, kind: str = "multi_label", **options: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the new model and the report."""
    ctx = context(kind)
    data = DataAccess({"support": Request(pixels, (None,) * len(pixels), labels, True)}, frozenset({"support"}))
    return PGU().apply(model, data, artefact, PGUOptions(**options), ctx), ctx.report


# Steps


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
@pytest.mark.parametrize("model", [Flat(), Twice()], ids=["flat", "deep"])
def test_outputs_in_the_core_space_are_unchanged_while_the_support_loss_rises(model: nn.Module, kind: str) -> None:
    train, support, labels = low_rank(2, 2), noise(4, 3, 2, 2), labels_for(4, kind)
    new, report = apply(model, prepare(model, train), support, labels, kind, gamma=1 - 1e-9, lr=0.5)
    protected = noise(5, 2, seed=8) @ train.flatten(1) if isinstance(model, Flat) else train.flatten(1)
    protected = protected.unflatten(1, (3, 2, 2))  # with one linear layer, the whole span of the training photos
    with torch.no_grad():
        torch.testing.assert_close(new(protected).logits, model(protected).logits, rtol=0, atol=1e-10)
        before, after = (losses(m(support).logits, labels, kind).mean().item() for m in (model, new))
    assert after > before + 0.01
    assert 0 < report["core_share"] < 1
    # Without the projection (an empty core space) the same steps would change them.
    unprojected, _ = apply(model, prepare(model, train), support, labels, kind, gamma=0, lr=0.5)
    assert (unprojected(protected).logits - model(protected).logits).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_a_step_is_the_gradient_projected_out_of_the_core_space(kind: str) -> None:
    model, train, support, labels = Flat(), noise(30, 3, 2, 2), noise(3, 3, 2, 2, seed=4), labels_for(3, kind)
    new, report = apply(model, prepare(model, train), support, labels, kind, gamma=0.5, lr=0.3, epochs=1)
    energies, vectors = torch.linalg.svd(train.flatten(1), full_matrices=False)[1:]
    shares = (energies**2).cumsum(0) / (energies**2).sum()
    v = vectors[: int((shares < 0.5).sum()) + 1]
    # The gradient in closed form: (sigmoid - y) x^T / K or (softmax - y) x^T, mean over the photos.
    x = support.flatten(1)
    logits = x @ model.head.weight.mT + model.head.bias
    error = (logits.sigmoid() - labels) / 5 if kind == "multi_label" else logits.softmax(1) - F.one_hot(labels, 5)
    gradient = sum(torch.outer(error[i], x[i]) for i in range(3)) / 3
    expected = model.head.weight + 0.3 * (gradient - gradient @ v.mT @ v)
    torch.testing.assert_close(new.head.weight, expected, rtol=0, atol=1e-12)
    assert report["core_share"] == pytest.approx(len(v) / 12)
    assert report["step_length"] == pytest.approx((expected - model.head.weight).norm().item())


def test_more_photos_than_a_batch_are_processed_in_order() -> None:
    model, train, support, labels = Flat(), noise(5, 3, 2, 2), noise(5, 3, 2, 2, seed=4), labels_for(5, "multi_label")
    artefact = prepare(model, train)
    whole, _ = apply(model, artefact, support, labels, epochs=2, batch_size=2)
    one = model
    for _ in range(2):
        for first in (0, 2, 4):
            rows = slice(first, first + 2)
            one, _ = apply(one, artefact, support[rows], labels[rows], epochs=1)
    assert torch.equal(one.head.weight, whole.head.weight)


def loss_with_class_indices(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The wrong version: 0/1 vectors used as class indices."""
    return -F.logsigmoid(logits).gather(1, labels.long()).mean()


def test_every_attribute_is_forgotten_not_only_the_first_two() -> None:
    model, support, labels = Flat(), noise(3, 3, 2, 2, seed=4), labels_for(3, "multi_label")
    new, _ = apply(model, prepare(model, low_rank(6, 2)), support, labels)
    changed = (new.head.weight - model.head.weight).abs().amax(1)
    assert (changed > 1e-4).all()
    (wrong,) = torch.autograd.grad(loss_with_class_indices(model(support).logits, labels), [model.head.weight])
    assert (wrong.abs().amax(1) > 0).tolist() == [True, True, False, False, False]


def test_parameters_without_a_core_space_are_unchanged() -> None:
    model = Tokens().eval()
    new, _ = apply(model, prepare(model, noise(9, 3, 8, 8)), noise(2, 3, 8, 8, seed=3), labels_for(2, "multi_label"))
    changed = {name for name, value in new.state_dict().items() if not torch.equal(value, model.state_dict()[name])}
    assert changed == {"patch.weight", "local.weight", "mix.weight", "head.weight"}


class Grouped(nn.Module):
    """A grouped or depthwise convolution of photos with 12 channels."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        with seeded(0, "grouped"):
            self.local, self.head = nn.Conv2d(12, 12, 3, groups=groups), nn.Linear(12, 5)
        self.double()

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return model_output(self.head(self.local(pixel_values).amax((2, 3))))


@pytest.mark.parametrize("groups", [1, 3, 12])
def test_a_grouped_convolution_is_protected_group_by_group(groups: int) -> None:
    model = Grouped(groups)
    # Each channel has one or two directions, the last channels have none, so the groups need different sizes.
    train = torch.stack([torch.outer(noise(3, seed=c), noise(3, seed=50 + c)) * (c < 8) for c in range(12)]).unsqueeze(0)
    train = torch.cat([train, train * (torch.arange(12) % 2).view(12, 1, 1)])
    artefact = prepare(model, train)
    ranks = core_space(artefact.tensors["local.weight"], 1 - 1e-9).square().sum((1, 2)).round().tolist()
    assert ranks == {1: [2], 3: [2, 2, 0], 12: [1.0] * 8 + [0] * 4}[groups]
    new, _ = apply(model, artefact, noise(2, 12, 3, 3, seed=9), labels_for(2, "multi_label"), gamma=1 - 1e-9)
    assert (new.local.weight - model.local.weight).abs().max() > 1e-4
    torch.testing.assert_close(new.local(train), model.local(train), rtol=0, atol=1e-12)
    torch.testing.assert_close(new(train).logits, model(train).logits, rtol=0, atol=1e-12)


def test_gamma_can_be_chosen_at_request_time() -> None:
    model, support, labels = Flat(), noise(2, 3, 2, 2, seed=4), labels_for(2, "multi_label")
    artefact = prepare(model, noise(40, 3, 2, 2))
    shares, lengths = [], []
    for gamma in (0.2, 0.5, 0.9):
        _, report = apply(model, artefact, support, labels, gamma=gamma)
        shares.append(report["core_share"])
        lengths.append(report["step_length"])
    assert shares == sorted(set(shares))
    assert lengths == sorted(set(lengths), reverse=True)
    PGU.apply_options("pgu", {"gamma": 0.9}, {"gamma": 0.5, "subtract_support": True, "lr": 0.2, "epochs": 1, "batch_size": 4})
    with pytest.raises(UsageError, match="--chunk of method 'pgu' is fixed when preparing"):
        PGU.apply_options("pgu", {"gamma": 0.9}, {"chunk": 4})


def test_photos_that_use_every_direction_raise() -> None:
    model = Flat()
    artefact = prepare(model, noise(40, 3, 2, 2))
    with pytest.raises(UsageError, match="With --gamma 1 the training photos use every direction, so no weight can change"):
        apply(model, artefact, noise(1, 3, 2, 2), labels_for(1, "multi_label"), gamma=1.0)


def test_diverging_steps_raise() -> None:
    model = Twice()
    with pytest.raises(OneshuiError, match="use a smaller --lr"):
        apply(model, prepare(model, low_rank(4, 2)), noise(1, 3, 2, 2), labels_for(1, "multi_label"), lr=1e308, epochs=9)


def test_a_shared_weight_is_protected_at_every_use() -> None:
    model, train = Twice(), low_rank(2, 2)
    assert {name: len(layers) for name, layers in projectable_layers(model).items()} == {"first.weight": 2, "head.weight": 1}
    with torch.no_grad():
        one = train.flatten(1)
        two = model.first(one).tanh()
        three = model.first(two).tanh()
    covariance = covariances_of(model, train)["first.weight"]
    assert covariance.num_rows == 6
    torch.testing.assert_close(covariance.matrix[0], mean_outer_product([*one, *two, *three]), rtol=1e-12, atol=1e-12)
    new, _ = apply(model, prepare(model, train), noise(3, 3, 2, 2), labels_for(3, "multi_label"), gamma=1 - 1e-9)
    assert new.tied.weight is new.first.weight
    assert (new.first.weight - model.first.weight).abs().max() > 1e-4
    torch.testing.assert_close(new(train).logits, model(train).logits, rtol=0, atol=1e-10)


def test_subtracting_frees_the_directions_of_the_support_images() -> None:
    model, train = Flat(), torch.eye(12).double()[:3].repeat(4, 1).unflatten(1, (3, 2, 2))
    support, labels = train[:1] * 2, labels_for(1, "multi_label")  # four times the energy, all of the energy in this direction
    artefact = prepare(model, train)
    full, full_report = apply(model, artefact, support, labels)
    reduced, reduced_report = apply(model, artefact, support, labels, subtract_support=True)
    assert full_report["core_share"] == pytest.approx(3 / 12)
    assert reduced_report["core_share"] == pytest.approx(2 / 12)
    torch.testing.assert_close(full(support).logits, model(support).logits, rtol=0, atol=1e-12)
    assert losses(reduced(support).logits, labels, "multi_label") > losses(model(support).logits, labels, "multi_label") + 0.01
    torch.testing.assert_close(reduced(train[1:3]).logits, model(train[1:3]).logits, rtol=0, atol=1e-12)


# The plugin


def test_the_preset_has_the_values_of_the_paper() -> None:
    few, many = (PGU.prepare_options("pgu", PGU.preset("paper", "celeba", people), {}) for people in (5, 200))
    assert (few.gamma, few.lr, few.epochs, few.subtract_support) == (0.9, 0.1, 5, True)
    assert (many.gamma, many.lr, many.epochs, many.subtract_support) == (0.75, 0.01, 10, True)
    assert (PGUOptions().gamma, PGUOptions().lr, PGUOptions().epochs, PGUOptions().subtract_support) == (0.9, 0.1, 5, False)
    assert PGU.prepare_options("pgu", {"subtract": True}, {}).subtract_support  # the earlier name


@pytest.mark.parametrize("training", [False, True])
def test_the_original_is_unchanged_and_the_result_is_deterministic(training: bool) -> None:
    model = Tokens().train(training)
    before, state, calls = copy.deepcopy(model.state_dict()), torch.get_rng_state(), []
    for _ in range(2):
        artefact = prepare(model, noise(9, 3, 8, 8))
        new, _ = apply(model, artefact, noise(2, 3, 8, 8, seed=3), labels_for(2, "multi_label"), subtract_support=True)
        calls.append((artefact.tensors, new.state_dict()))
        assert new.training == training
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert model.training == training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_pre_hooks for module in [*model.modules(), *new.modules()])
    for one, two in zip(*calls, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
@pytest.mark.parametrize("name", ["vit", "dinov2", "swin", "convnext", "resnet"])
def test_any_architecture_forgets_with_less_effect_on_training_photos(name: str, kind: str) -> None:
    model = classifier(name, kind)
    train, support = noise(12, 3, 32, 32, dtype=torch.float32), noise(3, 3, 32, 32, seed=6, dtype=torch.float32)
    labels = labels_for(3, kind, torch.float32)
    artefact = prepare(model, train, kind=kind)
    assert set(artefact.tensors) == set(projectable_layers(model))
    new, report = apply(model, artefact, support, labels, kind, gamma=0.99, lr=0.01)
    with torch.no_grad():
        before, after = (losses(m(support).logits, labels, kind).mean().item() for m in (model, new))
    assert after > before
    # Per weight, a step of the same length without the projection changes the layers' outputs for the training photos more.
    unprojected, _ = apply(model, artefact, support, labels, kind, gamma=0.0, lr=0.01)
    effects = [output_change(model, m, artefact) for m in (new, unprojected)]
    assert effects[0] < 0.7 * effects[1]
    assert 0 < report["core_share"] < 1


def output_change(old: nn.Module, new: nn.Module, artefact: Artefact) -> float:
    """Return the sum over layers of sqrt(tr dW C dW^T), the RMS of dW x over the training rows, for a step scaled to length 1."""
    a, b = parameters(old), parameters(new)
    step = {name: b[name] - a[name] for name in artefact.tensors}
    total = 0.0
    for name, matrix in artefact.tensors.items():
        d = step[name].reshape(len(matrix), -1, matrix.shape[1])
        total += (d @ matrix @ d.mT).diagonal(dim1=-2, dim2=-1).sum().clamp(min=0).sqrt().item()
    return total / norm(step).item()
