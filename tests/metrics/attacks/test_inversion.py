"""Inversion: on a linear model one step reveals the photo; similarity and rank against their definitions."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from oneshui_hf.metrics.attacks.inversion import Reconstruction, correlation, inversion_entry, psnr, reconstruct, weight_difference
from oneshui_hf.models.outputs import losses
from support.affine_model import CLASSES, KINDS, Affine, same_weights
from support.architectures import classifier

SIDE = 8


class Linear(Affine):
    def __init__(self) -> None:
        super().__init__(SimpleNamespace(num_labels=CLASSES))
        self.linear = torch.nn.Linear(3 * SIDE * SIDE, CLASSES)


def linear_model() -> Linear:
    model = Linear()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=rng))
    return model.eval()


def preprocess(pixels: torch.Tensor) -> torch.Tensor:
    return pixels / 127.5 - 1


def smooth_photos(count: int, seed: int = 1) -> torch.Tensor:
    """Return photos of smooth colours, pixels from 0 to 1."""
    coarse = torch.rand(count, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, SIDE, mode="bilinear", align_corners=True)


def step_away(model: torch.nn.Module, photo: torch.Tensor, labels: torch.Tensor, kind: str, length: float) -> torch.nn.Module:
    """Return the model after one step of gradient ascent on a photo."""
    ascended = copy.deepcopy(model)
    loss = losses(ascended(pixel_values=preprocess(255 * photo[None])).logits, labels, kind).mean()  # type: ignore[arg-type]
    loss.backward()
    with torch.no_grad():
        for parameter in ascended.parameters():
            if parameter.grad is not None:
                parameter.add_(length * parameter.grad)
                parameter.grad = None
    return ascended


def labels_of(kind: str) -> torch.Tensor:
    return torch.tensor([[1.0, 0.0, 1.0]]) if kind == "multi_label" else torch.tensor([1])


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_of_a_linear_model_reveals_the_photo(kind: str) -> None:
    model, photos = linear_model(), smooth_photos(20)
    difference = weight_difference(step_away(model, photos[3], labels_of(kind), kind, 0.1), model)
    assert difference is not None
    assert set(difference) == {"linear.weight", "linear.bias"}  # not `unused`, which has no gradient
    # The gradient of row k is (p_k - y_k) x, that of its bias p_k - y_k: their ratio is the photo.
    ratio = (difference["linear.weight"][0] / difference["linear.bias"][0]).view(3, SIDE, SIDE)
    torch.testing.assert_close(ratio, preprocess(255 * photos[3]), atol=2e-3, rtol=0)
    before = copy.deepcopy(model)
    rng = torch.Generator().manual_seed(0)
    found = reconstruct(model, difference, labels_of(kind), kind, preprocess, SIDE, rng)  # type: ignore[arg-type]
    assert same_weights(model, before)
    assert found.cosine > 0.99
    assert correlation(found.photo, photos[3][None]).item() > 0.95
    entry = inversion_entry(found, photos, torch.arange(20), 3)
    assert (entry["rank"], entry["candidates"], entry["cosine"]) == (1, 20, found.cosine)
    assert entry["correlation"] > 0.9 > entry["correlation_of_others"] + 0.3
    assert entry["psnr"] > entry["psnr_of_others"] + 5


def test_a_reconstruction_depends_on_the_generator_alone() -> None:
    model, photo = linear_model(), smooth_photos(1)[0]
    difference = weight_difference(step_away(model, photo, labels_of("multi_label"), "multi_label", 0.1), model)
    assert difference is not None
    frozen = copy.deepcopy(model).requires_grad_(False)
    found = [
        reconstruct(of, difference, labels_of("multi_label"), "multi_label", preprocess, SIDE, torch.Generator().manual_seed(seed), steps=5)
        for of, seed in ((model, 0), (frozen, 0), (model, 1))
    ]
    assert torch.equal(found[0].photo, found[1].photo)
    assert not torch.equal(found[0].photo, found[2].photo)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert all(one.photo.min() >= 0 and one.photo.max() <= 1 for one in found)


@pytest.mark.parametrize("name", ["vit", "dinov2", "convnext", "resnet"])
def test_every_architecture_can_be_searched(name: str) -> None:
    model, photo = classifier(name, "single_label"), torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2])
    difference = weight_difference(step_away(model, photo, labels, "single_label", 0.01), model)
    assert difference
    cosines = [
        reconstruct(model, difference, labels, "single_label", preprocess, 32, torch.Generator().manual_seed(0), steps=steps).cosine
        for steps in (0, 10)
    ]
    assert cosines[0] < cosines[1] <= 1


def test_difference_of_equal_models_and_of_models_with_other_shapes() -> None:
    model = linear_model()
    assert weight_difference(model, copy.deepcopy(model)) == {}
    assert weight_difference(model, classifier("vit", "multi_label")) is None


def test_similarities_are_those_of_numpy() -> None:
    photo, photos = smooth_photos(1, seed=5)[0], smooth_photos(4)
    for number, other in enumerate(photos):
        a, b = (of.double().numpy().ravel() for of in (photo, other))
        assert correlation(photo, photos)[number].item() == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-12)
        assert psnr(photo, photos)[number].item() == pytest.approx(10 * np.log10(1 / np.mean((a - b) ** 2)), abs=1e-9)


def test_a_candidate_counts_with_the_most_similar_photo() -> None:
    photos = smooth_photos(6)
    people = torch.tensor([7, 7, 3, 3, 5, 5])
    entry = inversion_entry(Reconstruction(photos[3], 0.5), photos, people, 3)
    assert entry["rank"] == 1
    assert entry["correlation"] == pytest.approx(1)
    others = correlation(photos[3], photos)
    assert entry["correlation_of_others"] == pytest.approx((others[:2].max() + others[4:].max()).item() / 2)
    assert inversion_entry(Reconstruction(photos[3], 0.5), photos, people, 5)["rank"] > 1


def test_a_flat_reconstruction_ranks_everybody_equally() -> None:
    flat = Reconstruction(torch.full((3, SIDE, SIDE), 0.5), 0.0)
    assert inversion_entry(flat, smooth_photos(9), torch.arange(9), 4)["rank"] == 5


def test_a_reconstruction_without_a_leak_ranks_by_chance() -> None:
    photos = smooth_photos(30)
    ranks = [inversion_entry(Reconstruction(one, 0.0), photos, torch.arange(30), 4)["rank"] for one in smooth_photos(300, seed=2)]
    error = math.sqrt((30**2 - 1) / 12 / len(ranks))
    assert abs(np.mean(ranks) - 15.5) < 15.5 / 3 + 4 * error  # one person may be more typical than others, so the mean is near chance only
