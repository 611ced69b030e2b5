"""The shared training loop, and what holds for all its methods: unchanged original, determinism by seed, any architecture.

Methods are compared with `sgd`, a loop in float64 with closed-form gradients, on an affine model.
"""

from __future__ import annotations

import copy
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Method, generator, seeded
from oneshui_plugins.bad_teacher import BadTeacher
from oneshui_plugins.common.sgd_loop import SGDOptions, Student, Teacher, cosine_schedule
from oneshui_plugins.fine_tuning import FineTuning
from oneshui_plugins.neggrad_plus import NegGradPlus
from oneshui_plugins.salun import SalUn
from oneshui_plugins.scrub import SCRUB
from support.affine_model import CLASSES, KINDS, SIZE, affine_model, apply_method, classifier, context, face_set, mean_loss, same_weights

METHODS = [FineTuning, NegGradPlus, SCRUB, BadTeacher, SalUn]
FORGETTING: dict[type[Method[Any]], dict[str, Any]] = {  # options with which they forget in a few steps
    NegGradPlus: {"alpha": 0.8, "lr": 0.2, "epochs": 20},
    SCRUB: {"lr": 0.1, "epochs": 15, "forgetting_epochs": 12},
    BadTeacher: {"lr": 0.2, "epochs": 10},
    SalUn: {"lr": 0.05},
}


def test_every_epoch_uses_every_photo_once_in_a_new_order() -> None:
    retain, forget, orders = face_set("single_label", 11), face_set("single_label", 5, seed=1), []
    student = Student(affine_model(), SGDOptions(epochs=3, batch_size=4), context("single_label"))
    for _ in student.epochs():
        batches = list(student.batches("both", retain, forget))
        assert [len(batch.positions) for batch in batches] == [4, 4, 4, 4]
        orders.append([position for batch in batches for position in batch.positions.tolist()])
        assert sorted(orders[-1]) == list(range(16))
        for batch in batches:
            for position, pixels, label in zip(batch.positions.tolist(), batch.pixels, batch.labels, strict=True):
                faces, local = (retain, position) if position < 11 else (forget, position - 11)
                expected, labels = faces.batch(torch.tensor([local]))
                assert torch.equal(pixels, expected[0])
                assert label == labels[0]
    assert len({tuple(positions) for positions in orders}) == 3


def test_a_cycled_set_repeats_in_another_order() -> None:
    faces = face_set("single_label", 7)
    student = Student(affine_model(), SGDOptions(batch_size=3), context("single_label"))
    batches_of_two_cycles = list(islice(student.cycle_batches("forget", faces), 6))
    first, second = (
        [p for batch in part for p in batch.positions.tolist()] for part in (batches_of_two_cycles[:3], batches_of_two_cycles[3:])
    )
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
    assert torch.equal(batches_of_two_cycles[0].pixels, faces.batch(batches_of_two_cycles[0].positions)[0])
    assert torch.equal(batches_of_two_cycles[0].labels, faces.labels[batches_of_two_cycles[0].positions])


def test_the_learning_rate_follows_a_cosine_schedule() -> None:
    assert cosine_schedule(0.5, 0.1, 0) == 0.5
    assert cosine_schedule(0.5, 0.1, 1) == pytest.approx(0.1)
    assert cosine_schedule(0.5, 0.1, 0.5) == pytest.approx(0.3)
    ctx = context("single_label")
    apply_method(
        FineTuning, affine_model(), face_set("single_label", 4), face_set("single_label", 2), ctx, epochs=3, lr=0.01, final_lr=0.002
    )
    assert [row["lr"] for row in ctx.report["learning"]] == pytest.approx([0.01, 0.006, 0.002])
    constant, single = context("single_label"), context("single_label")
    apply_method(FineTuning, affine_model(), face_set("single_label", 4), face_set("single_label", 2), constant, epochs=3, lr=0.01)
    assert [row["lr"] for row in constant.report["learning"]] == [0.01] * 3
    apply_method(
        FineTuning, affine_model(), face_set("single_label", 4), face_set("single_label", 2), single, epochs=1, lr=0.01, final_lr=0.002
    )
    assert [row["lr"] for row in single.report["learning"]] == [0.01]


def test_the_report_lists_the_mean_loss_per_epoch() -> None:
    ctx, faces = context("single_label"), face_set("single_label", 6)
    apply_method(FineTuning, affine_model(), faces, faces, ctx, epochs=2, lr=0, batch_size=3)
    assert [row["loss"] for row in ctx.report["learning"]] == pytest.approx([mean_loss(affine_model(), faces, "single_label")] * 2)


def test_gradients_are_clipped_to_the_maximum_norm() -> None:
    for clip, expected in ((0.25, 0.25), (100.0, 6.0)):
        student = Student(affine_model(), SGDOptions(lr=0.5, momentum=0), context("single_label"))
        before = student.model.unused.detach().clone()
        student.step(6.0 * student.model.unused[0], clip=clip)
        assert (before - student.model.unused).norm().item() == pytest.approx(0.5 * expected, rel=1e-5)


def test_a_final_learning_rate_above_the_first_raises() -> None:
    faces = face_set("single_label", 4)
    with pytest.raises(UsageError, match="--final-lr 0.0005 is above --lr 0.0001"):
        apply_method(SCRUB, affine_model(), faces, faces, context("single_label"), lr=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("empty", ["retain", "forget"])
def test_an_empty_set_raises(method: type[Method[Any]], empty: str) -> None:
    if empty not in method.needs.apply:
        pytest.skip("the method does not use this set")
    sets = {name: face_set("multi_label", 0 if name == empty else 4) for name in ("retain", "forget")}
    with pytest.raises(UsageError, match="has no photos to train on"):
        apply_method(method, affine_model(), sets["retain"], sets["forget"], context("multi_label"))


def test_diverging_training_raises() -> None:
    faces = face_set("multi_label", 8)
    with pytest.raises(OneshuiError, match="Training diverged in epoch 1.*smaller --lr"):
        apply_method(NegGradPlus, affine_model(), faces, faces, context("multi_label"), lr=1e38, alpha=0.1, batch_size=2)


def test_a_teacher_is_a_frozen_copy_in_eval_mode() -> None:
    model = affine_model().train()
    teacher, student = Teacher(model), Student(model, SGDOptions(lr=0.1), context("single_label"))
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=generator(0))
    before = teacher(pixels)
    student.step(student(pixels).sum())
    assert not torch.equal(student(pixels), before)
    assert torch.equal(teacher(pixels), before)
    assert not before.requires_grad
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_dropout_is_off_and_batch_statistics_are_unchanged() -> None:
    from transformers import AutoModelForImageClassification, ResNetConfig

    with seeded(0, "resnet"):
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=CLASSES)
        model = AutoModelForImageClassification.from_config(config)
    model.classifier.insert(1, torch.nn.Dropout(0.5))
    model.train()
    faces = face_set("single_label", 8, size=32)
    torch.manual_seed(1)
    new = apply_method(FineTuning, model, faces, faces, context("single_label"), epochs=1, batch_size=4)
    torch.manual_seed(2)
    again = apply_method(FineTuning, model, faces, faces, context("single_label"), epochs=1, batch_size=4)
    assert same_weights(new, again)
    assert model.training
    assert not new.training
    changed = {name for name, value in new.state_dict().items() if not torch.equal(value, model.state_dict()[name])}
    assert changed
    assert not changed & {name for name, _ in model.named_buffers()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_the_original_is_unchanged_and_the_result_depends_on_the_seed_alone(method: type[Method[Any]], kind: str) -> None:
    model = affine_model().train()
    before, retain, forget = copy.deepcopy(model), face_set(kind, 10), face_set(kind, 4, seed=1)
    values = {"epochs": 2, "batch_size": 3}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    new = apply_method(method, model, retain, forget, context(kind), **values)
    assert torch.equal(torch.get_rng_state(), state)
    assert same_weights(model, before)
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in new.parameters())
    assert not same_weights(new, model)
    torch.manual_seed(6)
    assert same_weights(apply_method(method, model, retain, forget, context(kind), **values), new)
    assert not same_weights(apply_method(method, model, retain, forget, context(kind, seed=1), **values), new)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", FORGETTING)
def test_forgetting_raises_the_forget_loss(method: type[Method[Any]], kind: str) -> None:
    retain, forget = face_set(kind, 12), face_set(kind, 6, seed=1)
    memorised = apply_method(FineTuning, affine_model(), concatenate(retain, forget), forget, context(kind), epochs=60, batch_size=6)
    new = apply_method(method, memorised, retain, forget, context(kind), batch_size=6, **FORGETTING[method])
    assert mean_loss(new, forget, kind) > mean_loss(memorised, forget, kind) + 0.1
    assert mean_loss(new, forget, kind) - mean_loss(memorised, forget, kind) > mean_loss(new, retain, kind) - mean_loss(
        memorised, retain, kind
    )


def concatenate(one: FaceSet, other: FaceSet) -> FaceSet:
    store = np.concatenate([one.store[one.rows], other.store[other.rows]])
    labels, people = torch.cat([one.labels, other.labels]), torch.cat([one.identities, other.identities])
    return FaceSet(store, np.arange(len(store)), labels, people, one.preprocess, one.people)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["vit", "dinov2", "swin", "convnext", "resnet"])
def test_any_architecture_is_updated(name: str, method: type[Method[Any]]) -> None:
    model = classifier(name, "multi_label")
    before, retain, forget = copy.deepcopy(model), face_set("multi_label", 5, size=32), face_set("multi_label", 3, seed=1, size=32)
    new = apply_method(method, model, retain, forget, context("multi_label"), epochs=1, batch_size=3)
    assert same_weights(model, before)
    assert type(new) is type(model)
    assert [n for n, _ in new.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert not same_weights(new, model)
    assert all(torch.isfinite(p).all() for p in new.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_it_is_not_a_one_shot_method_and_its_options_apply_at_request_time(method: type[Method[Any]]) -> None:
    from oneshui_hf.options import fields

    assert not method.needs.one_shot
    assert method.prepares == "never"
    assert {field.metadata["at"] for field in fields(method.options).values()} == {"apply"}
    with pytest.raises(UsageError, match="--epochs .* must be at least 1"):
        method.apply_options("it", {}, {"epochs": 0})
