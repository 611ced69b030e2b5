"""Few-shot relearning against AdamW from its definition in float64, and on models that hide or remove what they learned."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from oneshui_hf.metrics.attacks.few_shot_relearning import best_for_attacker, excess_entry, logits_after_fine_tuning, relearning_entry
from oneshui_hf.metrics.comparison import Predictions, Settings
from oneshui_hf.models.outputs import losses
from support.affine_model import (
    KINDS,
    affine_model,
    design_matrix,
    face_set,
    same_weights,
    task_gradient,
    theta,
)
from support.architectures import ARCHITECTURES, SIDE, classifier
from support.timm_stand_in import install

SETTINGS = Settings(resamples=200)


def adamw(weights: torch.Tensor, x: torch.Tensor, labels: torch.Tensor, kind: str, steps: int, lr: float) -> torch.Tensor:
    """Return weights (K, d) after AdamW (Loshchilov and Hutter) on all photos in each step, without weight decay."""
    gradient_at = task_gradient(x, labels, kind)
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)
    for step in range(1, steps + 1):
        gradient = gradient_at(weights)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weights = weights - lr * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("photos", [1, 2])
def test_logits_are_those_of_adamw(kind: str, photos: int) -> None:
    model, faces = affine_model(), face_set(kind, 6)
    before = copy.deepcopy(model)
    shots, others = torch.arange(photos), torch.arange(photos, 6)
    batches = [faces.batch(part)[0] for part in others.split(2)]
    found = logits_after_fine_tuning(model, *faces.batch(shots), batches, kind, steps=(3, 7), lr=2e-3)  # type: ignore[arg-type]
    x, y = design_matrix(faces, shots), faces.labels[shots]
    for logits, steps in zip(found, (3, 7), strict=True):
        expected = design_matrix(faces, others) @ adamw(theta(model), x, y, kind, steps, 2e-3).T
        assert torch.allclose(logits.double(), expected, atol=1e-4)
        assert not torch.allclose(expected, design_matrix(faces, others) @ theta(model).T, atol=1e-3)
    assert same_weights(model, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_every_architecture_is_trained_without_random_numbers_or_batch_statistics() -> None:
    with pytest.MonkeyPatch.context() as patched:
        install(patched)
        for name in ARCHITECTURES:
            model = classifier(name, "multi_label", dropout=0.5)
            pixels, labels = (
                torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)),
                torch.tensor([[0.0, 1, 0, 1, 1]] * 3),
            )
            state = torch.get_rng_state()
            found = [
                logits_after_fine_tuning(model, pixels[:1], labels[:1], [pixels[1:]], "multi_label", lr=1e-4, steps=(2,)) for _ in range(2)
            ]
            assert torch.equal(*found), name
            assert torch.equal(torch.get_rng_state(), state), name
            with torch.no_grad():
                assert not torch.equal(found[0][0], model(pixel_values=pixels[1:]).logits), name


def predictions(logits: torch.Tensor, labels: torch.Tensor, identities: torch.Tensor) -> Predictions:
    return Predictions(logits, labels, losses(logits, labels, "multi_label"), identities)


def random_logits(seed: int, photos: int) -> torch.Tensor:
    return torch.randn(photos, 3, generator=torch.Generator().manual_seed(seed))


def test_recovery_is_the_share_of_the_gap_that_comes_back() -> None:
    sizes = torch.tensor([1, 4, 2, 3, 6])
    identities = torch.arange(len(sizes)).repeat_interleave(sizes)
    labels = (random_logits(0, len(identities)) > 0).float()
    right = 2 * labels - 1
    noise = [0.2 * random_logits(seed, len(identities)) for seed in (1, 2, 3)]
    original, before, after = (predictions(gain * right + one, labels, identities) for gain, one in zip((3, 0.2, 1.2), noise, strict=True))
    entry = relearning_entry(before, after.logits, original.losses, "multi_label", SETTINGS)
    means = [
        np.mean([of.losses.double().numpy()[identities.numpy() == person].mean() for person in range(len(sizes))])
        for of in (original, before, after)
    ]
    assert entry["recovery"] == pytest.approx((means[1] - means[2]) / (means[1] - means[0]), abs=1e-7)
    assert (entry["loss_before"], entry["loss_after"]) == pytest.approx(means[1:], abs=1e-7)
    assert entry["score_before"] == before.score("multi_label")
    assert entry["score_after"] == after.score("multi_label")
    assert entry["interval"][0] < entry["recovery"] < entry["interval"][1]
    excess = excess_entry(before, after.logits, after, after.logits, "multi_label", SETTINGS)
    assert excess["value"] == pytest.approx(means[1] - means[2], abs=1e-7)
    assert excess["interval"][0] > 0


def test_the_attacker_stops_where_the_mean_loss_over_people_is_lowest() -> None:
    identities, labels = torch.tensor([0, 1, 1, 1]), torch.ones(4, 3)
    before = predictions(0 * labels, labels, identities)
    first = torch.tensor([[1.0], [0.0], [0.0], [0.0]])  # the photo of the first person
    after = torch.stack([0.1 * labels, 5 * first * labels, 0.8 * (1 - first) * labels, -labels])
    by_photo = torch.stack([losses(logits, labels, "multi_label") for logits in after])
    assert by_photo.mean(dim=1).argmin() == 2
    assert best_for_attacker(before, after, "multi_label") == 1


@pytest.mark.parametrize(("before", "expected"), [(3.0, None), (2.95, None), (0.0, 0.0)])
def test_recovery_is_unknown_where_there_is_nothing_to_recover(before: float, expected: float | None) -> None:
    identities, labels = torch.arange(4), torch.ones(4, 3)
    original, model = (predictions(gain * labels, labels, identities) for gain in (3.0, before))
    entry = relearning_entry(model, model.logits, original.losses, "multi_label", SETTINGS)
    assert entry["recovery"] == expected
    assert (entry["interval"] is None) == (expected is None)
    assert entry["loss_before"] == entry["loss_after"]


def test_no_interval_for_two_people_and_none_where_the_gap_may_be_none() -> None:
    labels = torch.ones(6, 3)
    original, model = predictions(3 * labels, labels, torch.arange(6)), predictions(0 * labels, labels, torch.arange(6) // 3)
    entry = relearning_entry(model, original.logits, original.losses, "multi_label", SETTINGS)
    assert entry["recovery"] == pytest.approx(1)
    assert entry["interval"] is None
    uneven = predictions(torch.tensor([0.0, 9, 9, 9, 9, 9])[:, None] * labels, labels, torch.arange(6))
    entry = relearning_entry(uneven, original.logits, original.losses, "multi_label", SETTINGS)
    assert entry["recovery"] is not None
    assert entry["interval"] is None


class TwoLayers(torch.nn.Module):
    """Features that are linear in the pixels, and a head."""

    def __init__(self, features: torch.Tensor, head: torch.Tensor) -> None:
        super().__init__()
        self.features, self.head = torch.nn.Parameter(features), torch.nn.Parameter(head)

    def forward(self, pixel_values: torch.Tensor) -> Any:
        return SimpleNamespace(logits=pixel_values.flatten(1) @ self.features.T @ self.head.T)


def test_a_model_that_hides_recovers_and_one_that_never_learned_does_not() -> None:
    rng = torch.Generator().manual_seed(0)
    photos = torch.randn(13, 3, 4, 4, generator=rng)  # the first is the attacker's
    labels = torch.tensor([[1.0, 0.0, 1.0]]).repeat(13, 1)
    common = torch.linalg.pinv(photos.flatten(1)) @ torch.ones(13)  # 1 on each photo of the person
    learned, unrelated = common.repeat(16, 1), common.norm() / 48**0.5 * torch.randn(16, 48, generator=rng)
    head = 3 / 16 * (2 * labels[:1].T - 1).repeat(1, 16)
    models = {
        "original": TwoLayers(learned, head),
        "hidden": TwoLayers(learned, 0 * head),  # the head alone has changed
        "never": TwoLayers(unrelated, 0 * head),
    }
    identities = torch.zeros(12, dtype=torch.int64)
    with torch.no_grad():
        before = {name: predictions(model(photos[1:]).logits, labels[1:], identities) for name, model in models.items()}
    assert before["hidden"].losses.allclose(before["never"].losses)  # their outputs do not differ
    recovered = {}
    for name in ("hidden", "never"):
        after = logits_after_fine_tuning(models[name], photos[:1], labels[:1], [photos[1:]], "multi_label", lr=0.01)[-1]
        recovered[name] = relearning_entry(before[name], after, before["original"].losses, "multi_label", SETTINGS)["recovery"]
    assert recovered["hidden"] > 0.9
    assert recovered["never"] < 0.5
