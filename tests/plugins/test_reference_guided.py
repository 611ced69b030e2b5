"""Reference-guided unlearning: statistics of held-out photos, references, and descent to them until the loss is theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Artefact, Context, DataAccess, Request, losses
from oneshui_plugins.reference_guided import (
    TOLERANCE,
    ReferenceGuided,
    ReferenceGuidedOptions,
    label_statistics,
    outcomes,
    references,
)
from support.architectures import classifier
from support.projection_models import TASKS, Flat, labels_for, noise
from support.recording_reporter import RecordingReporter

KINDS = ["multi_label", "single_label"]


def statistics_of(logits: torch.Tensor, labels: torch.Tensor, kind: str) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in label_statistics(logits, labels, TASKS[kind]).items()}


def apply(
    model: nn.Module, statistics: dict[str, torch.Tensor], pixels: torch.Tensor, labels: torch.Tensor, kind: str, **options: Any
) -> tuple[nn.Module, dict[str, Any], RecordingReporter]:
    """Return the new model, the report, and what was printed."""
    reporter = RecordingReporter()
    ctx = Context(TASKS[kind], 0, Accelerator(cpu=True), reporter)
    data = DataAccess({"support": Request(pixels, (None,) * len(pixels), labels, True)}, frozenset({"support"}))
    new = ReferenceGuided().apply(model, data, Artefact(tensors=statistics), ReferenceGuidedOptions(**options), ctx)
    return new, ctx.report, reporter


def confident(kind: str, count: int = 3) -> tuple[Flat, torch.Tensor, torch.Tensor]:
    """Return a model, photos, and the labels that the model predicts for them with confidence."""
    model, x = Flat(), noise(count, 3, 2, 2, seed=4)
    model.head.weight.data *= 8
    logits = model(x).logits
    labels = (logits > 0).double() if kind == "multi_label" else logits.argmax(1)
    return model, x, labels


# Statistics


def test_statistics_of_classes_are_means_over_the_photos_of_each_class() -> None:
    logits, labels = noise(40, 5), labels_for(40, "single_label") % 4  # no photo of the last class
    found = statistics_of(logits, labels, "single_label")
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    for label in range(4):
        rows = labels.numpy() == label
        np.testing.assert_allclose(found["probabilities"][0, label].numpy(), p[rows].mean(0), rtol=1e-6)
        assert found["losses"][0, label].item() == pytest.approx(-np.log(p[rows, label]).mean(), rel=1e-6)
        assert found["photos"][0, label].item() == rows.sum()
    assert not any(found[name][0, 4].any() for name in found)


def test_statistics_of_attributes_are_means_over_the_photos_with_each_value() -> None:
    logits, labels = noise(40, 5), labels_for(40, "multi_label")
    found = statistics_of(logits, labels, "multi_label")
    p = 1 / (1 + np.exp(-logits.numpy()))
    for attribute in range(5):
        for position, value in enumerate((1, 0)):
            rows = labels.numpy()[:, attribute] == value
            own = p[rows, attribute] if value else 1 - p[rows, attribute]
            mean = p[rows, attribute].mean()
            np.testing.assert_allclose(found["probabilities"][attribute, position].numpy(), [mean, 1 - mean], rtol=1e-6)
            assert found["losses"][attribute, position].item() == pytest.approx(-np.log(own).mean(), rel=1e-6)
            assert found["photos"][attribute, position].item() == rows.sum()


# References


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_has_the_mean_loss_or_is_the_mean_probability(kind: str) -> None:
    logits, labels = 3 * noise(60, 5), labels_for(60, kind)
    statistics, index = statistics_of(logits, labels, kind), outcomes(labels[:4], kind)  # type: ignore[arg-type]
    by_loss, known = references(statistics, index, "losses")
    mean, _ = references(statistics, index, "probabilities")
    assert known.all()
    for photo in range(4):
        for d, o in enumerate(index[photo].tolist()):
            torch.testing.assert_close(mean[photo, d], statistics["probabilities"][d, o], rtol=1e-6, atol=0)
            torch.testing.assert_close(-by_loss[photo, d, o].log(), statistics["losses"][d, o, 0], rtol=1e-6, atol=0)
            rest = torch.arange(mean.shape[2]) != o
            torch.testing.assert_close(
                by_loss[photo, d, rest] / by_loss[photo, d, rest].sum(), mean[photo, d, rest] / mean[photo, d, rest].sum()
            )
    for target in (by_loss, mean):
        torch.testing.assert_close(target.sum(2), torch.ones(target.shape[:2]).double())
    # The wrong version: a photo pulled to the mean probability keeps a smaller loss than the unseen photos have.
    own = mean.gather(2, index.unsqueeze(2)).squeeze(2).log().neg()
    assert (own < statistics["losses"].squeeze(2)[torch.arange(index.shape[1]), index]).all()


# Steps


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reference", ["losses", "probabilities"])
def test_a_step_on_a_linear_model_has_a_closed_form(kind: str, reference: str) -> None:
    model, x, labels = confident(kind)
    statistics = statistics_of(noise(60, 5), labels_for(60, kind), kind)
    new, report, _ = apply(model, statistics, x, labels, kind, steps=1, lr=0.3, reference=reference)
    q, _ = references(statistics, outcomes(labels, kind), reference)  # type: ignore[arg-type]
    logits = model(x).logits.detach()
    # d KL(q || softmax(z)) / dz = p - q; of an attribute, sigmoid(z) - q_1, in the mean over the attributes.
    error = (logits.sigmoid() - q[:, :, 0]) / 5 if kind == "multi_label" else logits.softmax(1) - q[:, 0]
    expected = model.head.weight - 0.3 * error.mT @ x.flatten(1) / 3
    torch.testing.assert_close(new.head.weight, expected, rtol=1e-6, atol=1e-9)
    assert report["steps_taken"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_rises_to_that_of_unseen_photos_and_the_steps_stop(kind: str) -> None:
    model, x, labels = confident(kind, 1)
    statistics = statistics_of(2 * noise(60, 5), labels_for(60, kind), kind)
    expected = statistics["losses"].squeeze(2)[torch.arange(5 if kind == "multi_label" else 1), outcomes(labels, kind)].mean().item()  # type: ignore[arg-type]
    before = losses(model(x).logits, labels, kind).item()  # type: ignore[arg-type]
    new, report, _ = apply(model, statistics, x, labels, kind, steps=4000, lr=0.01)
    after = losses(new(x).logits, labels, kind).item()  # type: ignore[arg-type]
    assert before < 0.5 * expected
    assert 1 < report["steps_taken"] < 4000
    assert (1 - TOLERANCE) * expected <= after < expected


def test_a_photo_at_its_goal_is_left_out_while_others_continue() -> None:
    model, x, labels = confident("single_label", 2)
    labels[1] = (labels[1] + 1) % 5  # its loss is above any mean
    statistics = statistics_of(noise(60, 5), labels_for(60, "single_label"), "single_label")
    new, _, _ = apply(model, statistics, x, labels, "single_label", steps=1, lr=0.3)
    q, _ = references(statistics, labels.unsqueeze(1), "losses")
    error = model(x[:1]).logits.detach().softmax(1) - q[:1, 0]
    torch.testing.assert_close(new.head.weight, model.head.weight - 0.3 * error.mT @ x[:1].flatten(1) / 2, rtol=1e-6, atol=1e-9)
    same, report, reporter = apply(model, statistics, x[1:], labels[1:], "single_label")
    assert torch.equal(same.head.weight, model.head.weight)
    assert report["steps_taken"] == 0
    assert "already that of unseen photos" in reporter.warnings[0]


def test_labels_without_held_out_photos_are_left_out() -> None:
    model, x, labels = confident("multi_label")
    held_out = labels_for(60, "multi_label")
    statistics = statistics_of(noise(60, 5), held_out, "multi_label")
    for tensor in statistics.values():
        tensor[2] = 0  # as if attribute 2 had no photo
    new, _, reporter = apply(model, statistics, x, labels, "multi_label", steps=3, lr=0.1)
    assert torch.equal(new.head.weight[2], model.head.weight[2])
    assert not torch.equal(new.head.weight[1], model.head.weight[1])
    assert not reporter.warnings


def test_classes_without_held_out_photos_are_left_out_or_refused() -> None:
    model, x, labels = confident("single_label")
    labels = torch.tensor([0, 1, 4])
    model.head.weight.data = 4 * torch.linalg.pinv(x.flatten(1)).T[[0, 1, 1, 1, 2]]  # confident in these labels
    model.head.weight.data[2:4] = 0
    statistics = statistics_of(noise(60, 5), labels_for(60, "single_label") % 4, "single_label")
    _, report, reporter = apply(model, statistics, x, labels, "single_label")
    assert report["steps_taken"] > 0
    assert reporter.warnings == ["Some support images have labels that no held-out photo has; they are left out."]
    with pytest.raises(UsageError, match="No held-out photo has the labels of these support images"):
        apply(model, statistics, x[2:], labels[2:], "single_label")


# The artefact


def held_out_set(kind: str) -> FaceSet:
    rng = np.random.default_rng(3)
    store = rng.integers(0, 256, (20, 3, 32, 32)).astype(np.uint8)
    labels = labels_for(20, kind, torch.float32)
    return FaceSet(store, np.arange(20), labels, torch.arange(20) // 2, Preprocess(32), tuple(f"p{i}" for i in range(10)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_preparation_reads_the_held_out_photos_alone(kind: str) -> None:
    model, faces = classifier("vit", kind, layers=1), held_out_set(kind)
    data = DataAccess({"val": faces}, ReferenceGuided.needs.prepare)
    ctx = Context(TASKS[kind], 0, Accelerator(cpu=True))
    artefact = ReferenceGuided().prepare(model, data, ReferenceGuidedOptions(), ctx)
    pixels, labels = faces.batch(torch.arange(20))
    with torch.no_grad():
        expected = label_statistics(model.eval()(pixel_values=pixels).logits, labels, TASKS[kind])
    for name, tensor in expected.items():
        torch.testing.assert_close(artefact.tensors[name], tensor, rtol=1e-4, atol=1e-6)
    cost = ReferenceGuided().cost(model, data, ReferenceGuidedOptions(), ctx)
    assert cost.forward == 20
    assert cost.bytes == sum(tensor.numel() * 4 for tensor in artefact.tensors.values())


def test_a_damaged_artefact_is_refused() -> None:
    model, x, labels = confident("multi_label")
    statistics = statistics_of(noise(60, 5), labels_for(60, "multi_label"), "multi_label")
    with pytest.raises(OneshuiError, match="lacks a tensor: losses"):
        apply(model, {name: tensor for name, tensor in statistics.items() if name != "losses"}, x, labels, "multi_label")
    with pytest.raises(OneshuiError, match="a mean loss or probability is negative"):
        apply(model, statistics | {"losses": -statistics["losses"]}, x, labels, "multi_label")
