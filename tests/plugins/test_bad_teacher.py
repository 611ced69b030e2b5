"""Bad Teacher against its equation, in float64, and the randomly initialised teacher."""

from __future__ import annotations

import pytest
import torch

from oneshui_plugins.bad_teacher import BadTeacher, randomly_initialised
from oneshui_plugins.common.kl import kl_divergence
from support.affine_model import (
    KINDS,
    Gradient,
    affine_model,
    apply_method,
    batch_order,
    classifier,
    context,
    design_matrix,
    face_set,
    kl_gradient,
    same_weights,
    sgd,
    theta,
)


@pytest.mark.parametrize("kind", KINDS)
def test_retain_and_forget_photos_have_different_teachers(kind: str) -> None:
    retain, forget, ctx = face_set(kind, 8), face_set(kind, 5, seed=1), context(kind)
    values = {"epochs": 3, "lr": 0.2, "final_lr": 0.1, "batch_size": 4, "weight_decay": 0.05}
    new = apply_method(BadTeacher, affine_model(), retain, forget, ctx, **values)
    x = torch.cat([design_matrix(faces, torch.arange(len(faces))) for faces in (retain, forget)])
    original, random = theta(affine_model()), theta(randomly_initialised(affine_model(), ctx))  # type: ignore[arg-type]
    targets = torch.cat([x[:8] @ original.T, x[8:] @ random.T])

    def gradient(positions: torch.Tensor) -> Gradient:
        return kl_gradient(x[positions], targets[positions], kind)

    name = "retain and forget"
    steps = [(lr, gradient(p)) for epoch, lr in enumerate([0.2, 0.15, 0.1]) for p in batch_order(name, epoch, 13, 4)]
    torch.testing.assert_close(theta(new), sgd(original, steps, 0.9, 0.05), rtol=1e-3, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_the_student_converges_to_its_teachers(kind: str) -> None:
    retain, forget, ctx = face_set(kind, 8), face_set(kind, 5, seed=1), context(kind)
    new = apply_method(BadTeacher, affine_model(), retain, forget, ctx, epochs=200, lr=0.2, final_lr=0.2)
    for faces, teacher in ((retain, affine_model()), (forget, randomly_initialised(affine_model(), ctx))):
        pixels = faces.batch(torch.arange(len(faces)))[0]
        with torch.no_grad():
            after, before, targets = (m(pixel_values=pixels).logits for m in (new, affine_model(), teacher))
        divergence = kl_divergence(targets, after, kind).mean()  # type: ignore[arg-type]
        assert divergence < 1e-3
        if faces is forget:
            assert divergence < 0.01 * kl_divergence(targets, before, kind).mean()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["vit", "dinov2", "swin", "convnext", "resnet"])
def test_the_random_teacher_has_the_same_architecture_and_other_weights(name: str) -> None:
    model, state = classifier(name, "multi_label"), torch.get_rng_state()
    for buffer in model.buffers():  # as after training: the random teacher must not contain them either
        if buffer.is_floating_point():
            buffer += 1
    first, second, other_seed = (randomly_initialised(model, context("multi_label", seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert same_weights(first, second)
    assert not same_weights(first, other_seed)
    assert {n: p.shape for n, p in first.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    initialised = [(p, q) for p, q in zip(first.parameters(), model.parameters(), strict=True) if p.std() > 0]
    assert initialised
    assert not any(torch.equal(p, q) for p, q in initialised)
    assert not any(torch.equal(p, q) for p, q in zip(first.buffers(), model.buffers(), strict=True) if p.is_floating_point())
    assert first.config is not model.config
