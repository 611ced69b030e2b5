"""SalUn: the mask, the labels, and that what is outside the mask keeps its bits."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.errors import UsageError
from oneshui_hf.methods import losses
from oneshui_plugins.common.sgd_loop import Student
from oneshui_plugins.salun import SalUn, SalUnOptions, random_labels, saliency, salient
from support.affine_model import CLASSES, KINDS, Affine, Gradient, affine, context, face_set, inputs, of_task, order, run, sgd, theta


def found_by(kind: str, forget: FaceSet, batch_size: int = 3) -> dict[str, torch.Tensor]:
    there = context(kind)
    return saliency(Student(affine(), SalUnOptions(batch_size=batch_size), there), forget, there)


def joined(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([parts["linear.weight"], parts["linear.bias"][:, None]], dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_saliency_is_the_gradient_of_the_mean_forget_loss(kind: str) -> None:
    forget = face_set(kind, 7, salt=1)
    everybody = torch.arange(7)
    expected = of_task(inputs(forget, everybody), forget.labels, kind)(theta(affine())).abs()
    for batch_size in (1, 3, 7):
        found = found_by(kind, forget, batch_size)
        torch.testing.assert_close(joined(found).double(), expected, rtol=1e-4, atol=1e-7)
        assert torch.equal(found["idle"], torch.zeros(5))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_mask_is_the_largest_share_of_all_weights_together(share: float) -> None:
    draws = torch.Generator().manual_seed(0)
    found = {"small": torch.rand(40, generator=draws), "large": 2 * torch.rand(5, 12, generator=draws)}
    mask = salient(found, share)
    inside = torch.cat([found[name][mask[name]] for name in found])
    outside = torch.cat([found[name][~mask[name]] for name in found])
    assert len(inside) == round(share * 100)
    assert inside.min() > outside.max()
    assert mask["large"].float().mean() > mask["small"].float().mean()  # one threshold, not one a layer


def test_a_weight_without_a_gradient_is_never_salient() -> None:
    mask = salient({"a": torch.tensor([0.0, 0.0, 0.0, 1.0])}, 1.0)
    assert mask["a"].tolist() == [False, False, False, True]


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="--share 0 .* nothing could move"):
        salient({"a": torch.ones(4)}, 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_random_labels_are_all_others_alike(kind: str) -> None:
    photos = 7000
    labels = torch.full((photos,), 1) if kind == "single_label" else torch.tensor([[1.0, 0.0, 1.0]]).repeat(photos, 1)
    drawn = random_labels(labels, context(kind))
    assert drawn.dtype == labels.dtype
    values, counts = torch.unique(drawn, dim=0, return_counts=True)
    others = CLASSES - 1 if kind == "single_label" else 2**CLASSES - 1
    assert len(values) == others
    assert not (values == labels[0]).reshape(others, -1).all(dim=1).any()
    assert (counts / photos - 1 / others).abs().max() < 0.03
    assert torch.equal(drawn, random_labels(labels, context(kind)))
    assert not torch.equal(drawn, random_labels(labels, context(kind, seed=1)))


def test_the_only_attribute_is_flipped() -> None:
    labels = torch.tensor([[0.0], [1.0], [1.0]])
    assert torch.equal(random_labels(labels, context("multi_label")), 1 - labels)


@pytest.mark.parametrize("kind", KINDS)
def test_salient_weights_learn_random_labels_beside_the_task(kind: str) -> None:
    retain, forget, there = face_set(kind, 10), face_set(kind, 4, salt=1), context(kind)
    new = run(SalUn, affine(), retain, forget, there, epochs=2, batch_size=3, lr=0.02, alpha=0.6, weight_decay=0.05)
    wrong = random_labels(forget.labels, there)
    cycled = chain.from_iterable(order("forget", turn, 4, 3) for turn in range(9))

    def both(stay: torch.Tensor, go: torch.Tensor) -> Gradient:
        keep = of_task(inputs(retain, stay), retain.labels[stay], kind)
        forgets = of_task(inputs(forget, go), wrong[go], kind)
        return lambda w: forgets(w) + 0.6 * keep(w)

    steps = [(0.02, both(stay, next(cycled))) for epoch in range(2) for stay in order("retain", epoch, 10, 3)]
    mask = joined(salient(found_by(kind, forget), 0.5))
    expected = sgd(theta(affine()), steps, 0.9, 0.05, mask=mask)
    torch.testing.assert_close(theta(new), expected, rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]


def masking_gradients_alone(retain: FaceSet, forget: FaceSet, kind: str, mask: dict[str, torch.Tensor], momentum_from: int) -> Affine:
    """The wrong version: gradients are masked (before step `momentum_from` not even that), momentum and weight decay are not."""
    model = affine()
    decay = 0.0 if momentum_from else 0.05
    rate = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=decay)
    for step in range(4):
        loss = sum(losses(model(f.batch(torch.arange(len(f)))[0]).logits, f.labels, kind).mean() for f in (retain, forget))  # type: ignore[arg-type]
        rate.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and step >= momentum_from:
                parameter.grad *= mask[name]
        rate.step()
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_weights_outside_the_mask_keep_their_bits(kind: str) -> None:
    retain, forget = face_set(kind, 10), face_set(kind, 4, salt=1)
    mask = salient(found_by(kind, forget), 0.5)
    original = dict(affine().named_parameters())

    def moved(model: torch.nn.Module, inside: bool) -> torch.Tensor:
        return torch.cat([(p != original[name])[mask[name] == inside] for name, p in model.named_parameters()])

    new = run(SalUn, affine(), retain, forget, context(kind), epochs=3, batch_size=3, momentum=0.9, weight_decay=0.05)
    assert not moved(new, inside=False).any()
    assert moved(new, inside=True).all()
    by_decay = masking_gradients_alone(retain, forget, kind, mask, momentum_from=0)
    by_momentum = masking_gradients_alone(retain, forget, kind, mask, momentum_from=1)
    assert moved(by_decay, inside=False).float().mean() > 0.9
    assert moved(by_momentum, inside=False).float().mean() > 0.9
