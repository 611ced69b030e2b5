"""SalUn: the mask, the labels, and that weights outside the mask are unchanged bit for bit."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.errors import UsageError
from oneshui_hf.methods import losses
from oneshui_plugins.common.sgd_loop import Student
from oneshui_plugins.salun import SalUn, SalUnOptions, saliency, saliency_mask, sample_wrong_labels
from support.affine_model import (
    CLASSES,
    KINDS,
    Affine,
    Gradient,
    affine_model,
    apply_method,
    batch_order,
    context,
    design_matrix,
    face_set,
    sgd,
    task_gradient,
    theta,
)


def saliency_of(kind: str, forget: FaceSet, batch_size: int = 3) -> dict[str, torch.Tensor]:
    ctx = context(kind)
    return saliency(Student(affine_model(), SalUnOptions(batch_size=batch_size), ctx), forget, ctx)


def joined(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([parts["linear.weight"], parts["linear.bias"][:, None]], dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_saliency_is_the_gradient_of_the_mean_forget_loss(kind: str) -> None:
    forget = face_set(kind, 7, seed=1)
    rows = torch.arange(7)
    expected = task_gradient(design_matrix(forget, rows), forget.labels, kind)(theta(affine_model())).abs()
    for batch_size in (1, 3, 7):
        found = saliency_of(kind, forget, batch_size)
        torch.testing.assert_close(joined(found).double(), expected, rtol=1e-4, atol=1e-7)
        assert torch.equal(found["unused"], torch.zeros(5))


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_the_mask_selects_the_most_salient_fraction_over_all_layers(fraction: float) -> None:
    rng = torch.Generator().manual_seed(0)
    found = {"small": torch.rand(40, generator=rng), "large": 2 * torch.rand(5, 12, generator=rng)}
    mask = saliency_mask(found, fraction)
    inside = torch.cat([found[name][mask[name]] for name in found])
    outside = torch.cat([found[name][~mask[name]] for name in found])
    assert len(inside) == round(fraction * 100)
    assert inside.min() > outside.max()
    assert mask["large"].float().mean() > mask["small"].float().mean()  # one threshold, not one per layer


def test_a_weight_without_a_gradient_is_never_salient() -> None:
    mask = saliency_mask({"a": torch.tensor([0.0, 0.0, 0.0, 1.0])}, 1.0)
    assert mask["a"].tolist() == [False, False, False, True]


def test_the_earlier_name_of_the_mask_fraction_is_read() -> None:
    assert SalUn.apply_options("salun", {"share": 0.2}, {}).mask_fraction == 0.2


def test_an_empty_mask_raises() -> None:
    with pytest.raises(UsageError, match="--mask-fraction 0 .* no weight can change"):
        saliency_mask({"a": torch.ones(4)}, 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_labels_are_uniform_over_all_others(kind: str) -> None:
    photos = 7000
    labels = torch.full((photos,), 1) if kind == "single_label" else torch.tensor([[1.0, 0.0, 1.0]]).repeat(photos, 1)
    sampled = sample_wrong_labels(labels, context(kind))
    assert sampled.dtype == labels.dtype
    values, counts = torch.unique(sampled, dim=0, return_counts=True)
    others = CLASSES - 1 if kind == "single_label" else 2**CLASSES - 1
    assert len(values) == others
    assert not (values == labels[0]).reshape(others, -1).all(dim=1).any()
    assert (counts / photos - 1 / others).abs().max() < 0.03
    assert torch.equal(sampled, sample_wrong_labels(labels, context(kind)))
    assert not torch.equal(sampled, sample_wrong_labels(labels, context(kind, seed=1)))


def test_a_single_attribute_is_always_flipped() -> None:
    labels = torch.tensor([[0.0], [1.0], [1.0]])
    assert torch.equal(sample_wrong_labels(labels, context("multi_label")), 1 - labels)


@pytest.mark.parametrize("kind", KINDS)
def test_salient_weights_are_trained_on_random_labels_and_the_task(kind: str) -> None:
    retain, forget, ctx = face_set(kind, 10), face_set(kind, 4, seed=1), context(kind)
    new = apply_method(SalUn, affine_model(), retain, forget, ctx, epochs=2, batch_size=3, lr=0.02, alpha=0.6, weight_decay=0.05)
    wrong_labels = sample_wrong_labels(forget.labels, ctx)
    forget_batches = chain.from_iterable(batch_order("forget", cycle, 4, 3) for cycle in range(9))

    def gradient(retain_rows: torch.Tensor, forget_rows: torch.Tensor) -> Gradient:
        of_retain = task_gradient(design_matrix(retain, retain_rows), retain.labels[retain_rows], kind)
        of_forget = task_gradient(design_matrix(forget, forget_rows), wrong_labels[forget_rows], kind)
        return lambda w: of_forget(w) + 0.6 * of_retain(w)

    steps = [(0.02, gradient(rows, next(forget_batches))) for epoch in range(2) for rows in batch_order("retain", epoch, 10, 3)]
    mask = joined(saliency_mask(saliency_of(kind, forget), 0.5))
    expected = sgd(theta(affine_model()), steps, 0.9, 0.05, mask=mask)
    torch.testing.assert_close(theta(new), expected, rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]


def masking_only_gradients(retain: FaceSet, forget: FaceSet, kind: str, mask: dict[str, torch.Tensor], masked_from: int) -> Affine:
    """The wrong version: only gradients are masked, from step `masked_from` on; momentum and weight decay are not."""
    model = affine_model()
    decay = 0.0 if masked_from else 0.05
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=decay)
    for step in range(4):
        loss = sum(losses(model(f.batch(torch.arange(len(f)))[0]).logits, f.labels, kind).mean() for f in (retain, forget))  # type: ignore[arg-type]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and step >= masked_from:
                parameter.grad *= mask[name]
        optimizer.step()
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_weights_outside_the_mask_are_unchanged_bit_for_bit(kind: str) -> None:
    retain, forget = face_set(kind, 10), face_set(kind, 4, seed=1)
    mask = saliency_mask(saliency_of(kind, forget), 0.5)
    original = dict(affine_model().named_parameters())

    def changed(model: torch.nn.Module, inside: bool) -> torch.Tensor:
        return torch.cat([(p != original[name])[mask[name] == inside] for name, p in model.named_parameters()])

    new = apply_method(SalUn, affine_model(), retain, forget, context(kind), epochs=3, batch_size=3, momentum=0.9, weight_decay=0.05)
    assert not changed(new, inside=False).any()
    assert changed(new, inside=True).all()
    by_decay = masking_only_gradients(retain, forget, kind, mask, masked_from=0)
    by_momentum = masking_only_gradients(retain, forget, kind, mask, masked_from=1)
    assert changed(by_decay, inside=False).float().mean() > 0.9
    assert changed(by_momentum, inside=False).float().mean() > 0.9
