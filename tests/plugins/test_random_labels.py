"""Random labels: how they are sampled, and one step of given length down the loss under them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.data.schema import Task
from oneshui_hf.errors import UsageError
from oneshui_hf.methods import Context, DataAccess, Request, StepOptions, generator, inner, losses, norm, parameters
from oneshui_plugins.common.normalized_step import DEFAULT_LENGTH
from oneshui_plugins.gradient_ascent import GradientAscent
from oneshui_plugins.random_labels import RandomLabels, resample_labels
from support.architectures import classifier

KINDS = ["multi_label", "single_label"]
SIZE = 32


def task(kind: str, classes: int = 5) -> Task:
    return Task(kind, tuple("abcdefgh"[:classes]))  # type: ignore[arg-type]


def context(kind: str, seed: int = 0) -> Context:
    return Context(task(kind), seed, Accelerator(cpu=True), request_size=2)


def photos(kind: str, count: int = 3) -> Request:
    rng = torch.Generator().manual_seed(1)
    pixels = torch.randn(count, 3, SIZE, SIZE, generator=rng)
    if kind == "multi_label":
        return Request(pixels, (None,) * count, torch.randint(0, 2, (count, 5), generator=rng).float(), True)
    return Request(pixels, (None,) * count, torch.randint(0, 5, (count,), generator=rng), True)


def applied(
    model: torch.nn.Module, kind: str, seed: int = 0, artefact: Any = None, **options: Any
) -> tuple[torch.nn.Module, dict[str, Any]]:
    ctx = context(kind, seed)
    data = DataAccess({"support": photos(kind)}, frozenset({"support"}))
    return RandomLabels().apply(model, data, artefact, StepOptions(**options), ctx), ctx.report


def step_of(old: torch.nn.Module, new: torch.nn.Module) -> dict[str, torch.Tensor]:
    before, after = parameters(old), parameters(new)
    return {name: after[name] - before[name] for name in before}


# The labels


def test_attributes_are_uniform_and_independent_of_the_given_ones() -> None:
    given = torch.zeros(4000, 5)
    given[:, 0] = 1
    sampled = resample_labels(given, task("multi_label"), generator(0))
    assert sampled.dtype == given.dtype
    assert set(sampled.flatten().tolist()) == {0.0, 1.0}
    assert (sampled.mean(0) - 0.5).abs().max() < 0.04  # five standard deviations
    covariance = (sampled - sampled.mean(0)).mT @ (sampled - sampled.mean(0)) / 4000
    assert (covariance - 0.25 * torch.eye(5)).abs().max() < 0.02  # attributes are independent


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_a_class_is_uniform_over_the_others(classes: int) -> None:
    given = torch.arange(classes).repeat_interleave(3000)
    sampled = resample_labels(given, task("single_label", classes), generator(0))
    assert sampled.dtype == torch.int64
    assert (sampled != given).all()
    for label in range(classes):
        shares = torch.bincount(sampled[given == label], minlength=classes) / 3000
        expected = torch.full((classes,), 1 / (classes - 1))
        expected[label] = 0
        assert (shares - expected).abs().max() < 0.046  # five standard deviations


def any_class(labels: torch.Tensor, classes: int, rng: torch.Generator) -> torch.Tensor:
    """The wrong version: the given class can be sampled again."""
    return torch.randint(classes, labels.shape, generator=rng)


def test_sampling_any_class_would_often_give_the_same_one() -> None:
    given = torch.arange(5).repeat(200)
    assert (any_class(given, 5, generator(0)) == given).float().mean() > 0.1


def test_a_single_class_raises() -> None:
    with pytest.raises(UsageError, match="no other class can be sampled"):
        resample_labels(torch.zeros(3, dtype=torch.int64), task("single_label", 1), generator(0))


# The step


@pytest.mark.parametrize("kind", KINDS)
def test_the_step_reduces_the_loss_under_the_sampled_labels_by_the_given_length(kind: str) -> None:
    model, request = classifier("vit", kind, layers=1, dropout=0.5), photos(kind)
    new, report = applied(model, kind, length=1e-3)
    sampled = resample_labels(request.labels, task(kind), generator(0, "step"))
    # The gradient of each photo, with the loss written out.
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for pixels, label in zip(request.pixels, sampled, strict=True):
        logits = model(pixel_values=pixels[None]).logits[0]
        if kind == "multi_label":
            loss = -(label * logits.sigmoid().log() + (1 - label) * (1 - logits.sigmoid()).log()).mean()
        else:
            loss = logits.logsumexp(0) - logits[label]
        for name, part in zip(total, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            total[name] += part / len(request)
    step = step_of(model, new)
    length = 1e-3 * norm(parameters(model)).item()
    assert norm(step).item() == pytest.approx(length, rel=1e-3)
    assert report == {"step_length": pytest.approx(length), "step_share": 1e-3}
    assert inner(step, total).item() / (norm(step) * norm(total)).item() == pytest.approx(-1, abs=1e-4)

    def loss_under(m: torch.nn.Module, labels: torch.Tensor) -> float:
        with torch.no_grad():
            return losses(m(pixel_values=request.pixels).logits, labels, kind).mean().item()  # type: ignore[arg-type]

    assert loss_under(new, sampled) < loss_under(model, sampled)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_memorised_the_photos_forgets_them(kind: str) -> None:
    model, request = classifier("vit", kind, layers=1, dropout=0.5), photos(kind)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(40):
        loss = losses(model(pixel_values=request.pixels).logits, request.labels, kind).mean()  # type: ignore[arg-type]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.zero_grad()
    new, _ = applied(model, kind, length=2e-2)
    with torch.no_grad():
        before, after = (losses(m(pixel_values=request.pixels).logits, request.labels, kind).mean() for m in (model, new))  # type: ignore[arg-type]
    assert before < 0.1
    assert after > 1.2 * before


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_depends_on_the_seed_and_the_original_is_unchanged(kind: str) -> None:
    model = classifier("resnet", kind, layers=1, dropout=0.5).train()  # its batch statistics must not change either
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    one, two, other = (applied(model, kind, seed)[0] for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert not torch.equal(one.get_parameter("classifier.1.bias"), other.get_parameter("classifier.1.bias"))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert all(torch.equal(one.state_dict()[name], before[name]) for name in before if name not in dict(model.named_parameters()))
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_is_off() -> None:
    model = classifier("vit", "multi_label", layers=1, dropout=0.5)
    in_eval, _ = applied(model, "multi_label")
    in_train, _ = applied(model.train(), "multi_label")
    assert all(torch.equal(a, b) for a, b in zip(in_eval.parameters(), in_train.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["vit", "dinov2", "swin", "convnext", "resnet"])
def test_any_architecture_takes_the_step(name: str, kind: str) -> None:
    model = classifier(name, kind, layers=1, dropout=0.5)
    new, report = applied(model, kind, length=1e-3)
    assert norm(step_of(model, new)).item() == pytest.approx(report["step_length"], rel=1e-3)


# Preparation


def face_set(people: list[int], kind: str, first: int = 0) -> FaceSet:
    rng = np.random.default_rng([first, len(people)])
    store = rng.integers(0, 256, (first + len(people), 3, SIZE, SIZE)).astype(np.uint8)
    labels: Any = rng.integers(0, 2, (len(people), 5)).astype(np.float32) if kind == "multi_label" else rng.integers(0, 5, len(people))
    names = tuple(f"p{i}" for i in range(99))
    return FaceSet(store, np.arange(first, len(store)), torch.from_numpy(labels), torch.tensor(people), Preprocess(SIZE), names)


def data_access(kind: str) -> DataAccess:
    train, val = face_set([i // 4 for i in range(32)], kind), face_set([50 + i // 4 for i in range(16)], kind, 100)
    return DataAccess({"train": train, "val": val}, RandomLabels.needs.prepare)


@pytest.mark.parametrize("kind", KINDS)
def test_the_prepared_length_is_used_unless_one_is_given(kind: str) -> None:
    model = classifier("vit", kind, layers=1, dropout=0.5)
    options = StepOptions(calibration=2, unseen_support=False)
    one, two = (RandomLabels().prepare(model, data_access(kind), options, context(kind)) for _ in range(2))
    assert one.values == two.values
    assert one.values["length"] in [pytest.approx(row["length"], rel=1e-5) for row in one.report["calibration"]]
    assert applied(model, kind, artefact=one)[1]["step_share"] == one.values["length"]
    assert applied(model, kind, artefact=one, length=3e-4)[1]["step_share"] == 3e-4
    assert applied(model, kind)[1]["step_share"] == DEFAULT_LENGTH


def test_each_simulated_request_has_its_own_random_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    from oneshui_plugins import random_labels as module

    calls = []
    monkeypatch.setattr(module, "resample_labels", lambda *args: calls.append(resample_labels(*args)) or calls[-1])
    options = StepOptions(calibration=3, unseen_support=False)
    RandomLabels().prepare(
        classifier("vit", "multi_label", layers=1, dropout=0.5), data_access("multi_label"), options, context("multi_label")
    )
    assert len(calls) == 3
    assert len({str(labels.tolist()) for labels in calls}) == 3


@pytest.mark.parametrize(("method", "name"), [(RandomLabels, "Random labels"), (GradientAscent, "Gradient ascent")])
def test_preparing_without_calibration_raises(method: Any, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} prepares only its step length, so --calibration must be at least 1"):
        method().prepare(None, None, StepOptions(calibration=0), context("multi_label"))
