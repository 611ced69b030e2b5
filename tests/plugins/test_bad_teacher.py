"""Bad Teacher against its equation, in float64; the ignorant teacher knows nothing."""

from __future__ import annotations

import pytest
import torch

from oneshui_plugins.bad_teacher import BadTeacher, ignorant
from oneshui_plugins.common.kl import divergence
from support.affine_model import KINDS, Gradient, affine, classifier, context, face_set, inputs, of_divergence, order, run, same, sgd, theta


@pytest.mark.parametrize("kind", KINDS)
def test_each_photo_has_its_own_teacher(kind: str) -> None:
    retain, forget, there = face_set(kind, 8), face_set(kind, 5, salt=1), context(kind)
    values = {"epochs": 3, "lr": 0.2, "final_lr": 0.1, "batch_size": 4, "weight_decay": 0.05}
    new = run(BadTeacher, affine(), retain, forget, there, **values)
    x = torch.cat([inputs(faces, torch.arange(len(faces))) for faces in (retain, forget)])
    original, fresh = theta(affine()), theta(ignorant(affine(), there))  # type: ignore[arg-type]
    taught = torch.cat([x[:8] @ original.T, x[8:] @ fresh.T])

    def gradient(positions: torch.Tensor) -> Gradient:
        return of_divergence(x[positions], taught[positions], kind)

    name = "retain and forget"
    steps = [(rate, gradient(p)) for epoch, rate in enumerate([0.2, 0.15, 0.1]) for p in order(name, epoch, 13, 4)]
    torch.testing.assert_close(theta(new), sgd(original, steps, 0.9, 0.05), rtol=1e-3, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_the_student_ends_up_as_its_teachers(kind: str) -> None:
    retain, forget, there = face_set(kind, 8), face_set(kind, 5, salt=1), context(kind)
    new = run(BadTeacher, affine(), retain, forget, there, epochs=200, lr=0.2, final_lr=0.2)
    for faces, teacher in ((retain, affine()), (forget, ignorant(affine(), there))):
        pixels = faces.batch(torch.arange(len(faces)))[0]
        with torch.no_grad():
            said, before, taught = (m(pixel_values=pixels).logits for m in (new, affine(), teacher))
        apart = divergence(taught, said, kind).mean()  # type: ignore[arg-type]
        assert apart < 1e-3
        if faces is forget:
            assert apart < 0.01 * divergence(taught, before, kind).mean()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["vit", "dinov2", "swin", "convnext", "resnet"])
def test_the_ignorant_teacher_is_of_the_same_architecture_and_of_other_weights(name: str) -> None:
    model, state = classifier(name, "multi_label"), torch.get_rng_state()
    for buffer in model.buffers():  # as training leaves them: they, too, must not reach the ignorant one
        if buffer.is_floating_point():
            buffer += 1
    fresh, again, other = (ignorant(model, context("multi_label", seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(fresh, again)
    assert not same(fresh, other)
    assert {n: p.shape for n, p in fresh.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    drawn = [(p, q) for p, q in zip(fresh.parameters(), model.parameters(), strict=True) if p.std() > 0]
    assert drawn
    assert not any(torch.equal(p, q) for p, q in drawn)
    assert not any(torch.equal(p, q) for p, q in zip(fresh.buffers(), model.buffers(), strict=True) if p.is_floating_point())
    assert fresh.config is not model.config
