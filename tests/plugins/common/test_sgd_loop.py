"""The training loop that methods share, and what all of them keep to: the original stays, the seed decides, any architecture.

What a method computes is held against `sgd`, a loop in float64 with gradients in closed form, on an affine model.
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
from oneshui_plugins.common.sgd_loop import SGDOptions, Student, Teacher, cosine
from oneshui_plugins.fine_tuning import FineTuning
from oneshui_plugins.neggrad_plus import NegGradPlus
from oneshui_plugins.salun import SalUn
from oneshui_plugins.scrub import SCRUB
from support.affine_model import CLASSES, KINDS, SIZE, affine, classifier, context, face_set, mean_loss, run, same

METHODS = [FineTuning, NegGradPlus, SCRUB, BadTeacher, SalUn]
FORGETTING: dict[type[Method[Any]], dict[str, Any]] = {  # values with which they forget in a few steps
    NegGradPlus: {"alpha": 0.8, "lr": 0.2, "epochs": 20},
    SCRUB: {"lr": 0.1, "epochs": 15, "forgetting_epochs": 12},
    BadTeacher: {"lr": 0.2, "epochs": 10},
    SalUn: {"lr": 0.05},
}


# The reference: theta is (K, d + 1) in float64, the bias its last column; inputs carry a 1 for it.


def test_every_epoch_takes_every_photo_once_in_its_own_order() -> None:
    retain, forget, orders = face_set("single_label", 11), face_set("single_label", 5, salt=1), []
    student = Student(affine(), SGDOptions(epochs=3, batch_size=4), context("single_label"))
    for _ in student.epochs():
        batches = list(student.batches("both", retain, forget))
        assert [len(batch.positions) for batch in batches] == [4, 4, 4, 4]
        orders.append([position for batch in batches for position in batch.positions.tolist()])
        assert sorted(orders[-1]) == list(range(16))
        for batch in batches:
            for position, pixels, label in zip(batch.positions.tolist(), batch.pixels, batch.labels, strict=True):
                faces, inside = (retain, position) if position < 11 else (forget, position - 11)
                expected, labels = faces.batch(torch.tensor([inside]))
                assert torch.equal(pixels, expected[0])
                assert label == labels[0]
    assert len({tuple(positions) for positions in orders}) == 3


def test_a_cycled_set_comes_round_again_in_another_order() -> None:
    faces = face_set("single_label", 7)
    student = Student(affine(), SGDOptions(batch_size=3), context("single_label"))
    rounds = list(islice(student.cycled("forget", faces), 6))
    first, second = ([p for batch in part for p in batch.positions.tolist()] for part in (rounds[:3], rounds[3:]))
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
    assert torch.equal(rounds[0].pixels, faces.batch(rounds[0].positions)[0])
    assert torch.equal(rounds[0].labels, faces.labels[rounds[0].positions])


def test_the_rate_falls_from_the_first_epoch_to_the_last() -> None:
    assert cosine(0.5, 0.1, 0) == 0.5
    assert cosine(0.5, 0.1, 1) == pytest.approx(0.1)
    assert cosine(0.5, 0.1, 0.5) == pytest.approx(0.3)
    there = context("single_label")
    run(FineTuning, affine(), face_set("single_label", 4), face_set("single_label", 2), there, epochs=3, lr=0.01, final_lr=0.002)
    assert [row["lr"] for row in there.report["learning"]] == pytest.approx([0.01, 0.006, 0.002])
    constant, single = context("single_label"), context("single_label")
    run(FineTuning, affine(), face_set("single_label", 4), face_set("single_label", 2), constant, epochs=3, lr=0.01)
    assert [row["lr"] for row in constant.report["learning"]] == [0.01] * 3
    run(FineTuning, affine(), face_set("single_label", 4), face_set("single_label", 2), single, epochs=1, lr=0.01, final_lr=0.002)
    assert [row["lr"] for row in single.report["learning"]] == [0.01]


def test_the_report_tells_the_mean_of_what_was_minimised() -> None:
    there, faces = context("single_label"), face_set("single_label", 6)
    run(FineTuning, affine(), faces, faces, there, epochs=2, lr=0, batch_size=3)
    assert [row["loss"] for row in there.report["learning"]] == pytest.approx([mean_loss(affine(), faces, "single_label")] * 2)


def test_a_long_gradient_is_shortened_and_a_short_one_is_not() -> None:
    for clip, expected in ((0.25, 0.25), (100.0, 6.0)):
        student = Student(affine(), SGDOptions(lr=0.5, momentum=0), context("single_label"))
        before = student.model.idle.detach().clone()
        student.descend(6.0 * student.model.idle[0], clip=clip)
        assert (before - student.model.idle).norm().item() == pytest.approx(0.5 * expected, rel=1e-5)


def test_a_rate_that_would_rise_is_refused() -> None:
    faces = face_set("single_label", 4)
    with pytest.raises(UsageError, match="--final-lr 0.0005 is above --lr 0.0001"):
        run(SCRUB, affine(), faces, faces, context("single_label"), lr=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("empty", ["retain", "forget"])
def test_an_empty_set_is_refused(method: type[Method[Any]], empty: str) -> None:
    if empty not in method.needs.apply:
        pytest.skip("not read")
    sets = {name: face_set("multi_label", 0 if name == empty else 4) for name in ("retain", "forget")}
    with pytest.raises(UsageError, match="has no photos to learn from"):
        run(method, affine(), sets["retain"], sets["forget"], context("multi_label"))


def test_training_that_diverges_is_an_error() -> None:
    faces = face_set("multi_label", 8)
    with pytest.raises(OneshuiError, match="Training diverged in epoch 1.*smaller --lr"):
        run(NegGradPlus, affine(), faces, faces, context("multi_label"), lr=1e38, alpha=0.1, batch_size=2)


def test_a_teacher_is_a_frozen_copy_in_eval_mode() -> None:
    model = affine().train()
    teacher, student = Teacher(model), Student(model, SGDOptions(lr=0.1), context("single_label"))
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=generator(0))
    before = teacher(pixels)
    student.descend(student(pixels).sum())
    assert not torch.equal(student(pixels), before)
    assert torch.equal(teacher(pixels), before)
    assert not before.requires_grad
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_fine_tuned_dropout_does_not_act_and_batch_statistics_stay() -> None:
    from transformers import AutoModelForImageClassification, ResNetConfig

    with seeded(0, "resnet"):
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=CLASSES)
        model = AutoModelForImageClassification.from_config(config)
    model.classifier.insert(1, torch.nn.Dropout(0.5))
    model.train()
    faces = face_set("single_label", 8, size=32)
    torch.manual_seed(1)
    new = run(FineTuning, model, faces, faces, context("single_label"), epochs=1, batch_size=4)
    torch.manual_seed(2)
    again = run(FineTuning, model, faces, faces, context("single_label"), epochs=1, batch_size=4)
    assert same(new, again)
    assert model.training
    assert not new.training
    changed = {name for name, value in new.state_dict().items() if not torch.equal(value, model.state_dict()[name])}
    assert changed
    assert not changed & {name for name, _ in model.named_buffers()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_the_original_stays_and_the_seed_alone_decides(method: type[Method[Any]], kind: str) -> None:
    model = affine().train()
    before, retain, forget = copy.deepcopy(model), face_set(kind, 10), face_set(kind, 4, salt=1)
    values = {"epochs": 2, "batch_size": 3}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    new = run(method, model, retain, forget, context(kind), **values)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(model, before)
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in new.parameters())
    assert not same(new, model)
    torch.manual_seed(6)
    assert same(run(method, model, retain, forget, context(kind), **values), new)
    assert not same(run(method, model, retain, forget, context(kind, seed=1), **values), new)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", FORGETTING)
def test_forgetting_raises_the_forget_loss(method: type[Method[Any]], kind: str) -> None:
    retain, forget = face_set(kind, 12), face_set(kind, 6, salt=1)
    known = run(FineTuning, affine(), join(retain, forget), forget, context(kind), epochs=60, batch_size=6)
    new = run(method, known, retain, forget, context(kind), batch_size=6, **FORGETTING[method])
    assert mean_loss(new, forget, kind) > mean_loss(known, forget, kind) + 0.1
    assert mean_loss(new, forget, kind) - mean_loss(known, forget, kind) > mean_loss(new, retain, kind) - mean_loss(known, retain, kind)


def join(one: FaceSet, other: FaceSet) -> FaceSet:
    store = np.concatenate([one.store[one.rows], other.store[other.rows]])
    labels, people = torch.cat([one.labels, other.labels]), torch.cat([one.identities, other.identities])
    return FaceSet(store, np.arange(len(store)), labels, people, one.preprocess, one.people)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["vit", "dinov2", "swin", "convnext", "resnet"])
def test_any_architecture_learns(name: str, method: type[Method[Any]]) -> None:
    model = classifier(name, "multi_label")
    before, retain, forget = copy.deepcopy(model), face_set("multi_label", 5, size=32), face_set("multi_label", 3, salt=1, size=32)
    new = run(method, model, retain, forget, context("multi_label"), epochs=1, batch_size=3)
    assert same(model, before)
    assert type(new) is type(model)
    assert [n for n, _ in new.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert not same(new, model)
    assert all(torch.isfinite(p).all() for p in new.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_it_is_no_one_shot_method_and_its_options_act_at_the_request(method: type[Method[Any]]) -> None:
    from oneshui_hf.options import fields

    assert not method.needs.one_shot
    assert method.prepares == "never"
    assert {field.metadata["at"] for field in fields(method.options).values()} == {"apply"}
    with pytest.raises(UsageError, match="--epochs .* must be at least 1"):
        method.apply_options("it", {}, {"epochs": 0})
