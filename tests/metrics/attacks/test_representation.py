"""CKA against its other formula in float64, neighbours against scikit-learn, and features of every architecture."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from oneshui_hf.metrics.attacks.representation import layer_features, linear_cka, neighbour_overlap
from oneshui_hf.testing.toy_problem import toy_problem
from support.architectures import ARCHITECTURES, SIDE, classifier
from support.timm_stand_in import install


def features(seed: int, photos: int = 40, size: int = 12) -> torch.Tensor:
    return torch.randn(photos, size, generator=torch.Generator().manual_seed(seed)) + 3


def rotation(size: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(9), dtype=torch.float64)).Q


@pytest.mark.parametrize("sizes", [(12, 12), (12, 70), (3, 5)])
def test_cka_is_that_of_the_products_of_features(sizes: tuple[int, int]) -> None:
    first, second = (features(seed, size=size) for seed, size in enumerate(sizes))
    second[:, :3] += 2 * first[:, :3]
    x, y = (of.double().numpy() - of.double().numpy().mean(0) for of in (first, second))
    expected = np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert linear_cka(first, second) == pytest.approx(expected, abs=1e-12)
    assert linear_cka(second, first) == pytest.approx(expected, abs=1e-12)
    assert 0.05 < expected < 0.95


def test_both_are_1_for_equal_features_and_do_not_change_with_rotation_scale_and_shift() -> None:
    first, second = features(0).double(), features(1).double()
    moved = -2.5 * first @ rotation(12) + 7
    assert linear_cka(first, moved) == pytest.approx(1, abs=1e-12)
    assert neighbour_overlap(first, moved) == neighbour_overlap(first, first) == 1
    assert linear_cka(moved, second) == pytest.approx(linear_cka(first, second), abs=1e-12)
    assert neighbour_overlap(moved, second) == neighbour_overlap(first, second)
    stretched = first * torch.tensor([30.0] + [1.0] * 11)
    assert linear_cka(first, stretched) < 0.6
    assert neighbour_overlap(first, stretched) < 0.6


def test_unrelated_features_are_near_chance() -> None:
    first, second = features(0, photos=800, size=4), features(1, photos=800, size=4)
    assert linear_cka(first, second) < 0.02
    assert neighbour_overlap(first, second) == pytest.approx(5 / 799, abs=0.01)


@pytest.mark.parametrize("k", [1, 5])
def test_neighbours_are_those_of_scikit_learn(k: int) -> None:
    first = features(0)
    second = first + features(1, size=12)
    found = [NearestNeighbors(n_neighbors=k).fit(of.double().numpy()).kneighbors(return_distance=False) for of in (first, second)]
    expected = np.mean([len(set(a) & set(b)) / k for a, b in zip(*found, strict=True)])
    assert neighbour_overlap(first, second, k) == pytest.approx(expected, abs=1e-12)
    assert 0 < expected < 1


def test_equal_photos_have_the_same_neighbours_in_every_model() -> None:
    assert neighbour_overlap(torch.ones(20, 3), torch.zeros(20, 5)) == 1


def test_a_model_that_forgot_is_at_the_oracle_one_that_hides_is_not_and_a_destroyed_one_is_farther_on_test() -> None:
    oracle = {name: features(seed, photos=60, size=16) for seed, name in enumerate(("forget", "test"))}
    memorised = 3 * features(2, photos=12, size=16).repeat_interleave(5, dim=0)  # a direction of each forget identity's own
    original = {"forget": oracle["forget"] + memorised, "test": oracle["test"] + 0.1 * features(3, photos=60, size=16)}
    forgotten = {
        name: original["test"].std() * of @ rotation(16).float() for name, of in oracle.items()
    }  # the oracle, in other coordinates
    destroyed = {name: features(seed, photos=60, size=16) for seed, name in enumerate(("forget", "test"), start=4)}
    for similarity in (linear_cka, neighbour_overlap):
        scores = {
            model: {name: similarity(found[name], oracle[name]) for name in oracle}
            for model, found in {"original": original, "forgotten": forgotten, "destroyed": destroyed}.items()
        }
        assert scores["forgotten"] == pytest.approx({"forget": 1, "test": 1}, abs=1e-5)
        assert scores["original"]["forget"] < 0.7  # and so a model of which only the head was changed
        assert scores["destroyed"]["test"] < 0.5 < 0.8 < scores["original"]["test"]


def test_too_few_photos_and_constant_features_have_no_similarity() -> None:
    assert math.isnan(neighbour_overlap(features(0, photos=6), features(1, photos=6)))
    assert not math.isnan(neighbour_overlap(features(0, photos=7), features(1, photos=7)))
    assert math.isnan(linear_cka(torch.full((9, 3), 0.1), features(0, photos=9)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_features_are_means_of_hidden_states(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "timm":
        install(monkeypatch)
    model, pixels = classifier(name, "multi_label"), torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    found = layer_features(model, pixels)
    assert name == "timm" or len(found) > 1
    assert all(layer.shape == (3, layer.shape[1]) and layer.dtype == torch.float32 for layer in found)
    again = layer_features(model, pixels[:1])
    assert all(torch.allclose(one[:1], other, atol=1e-5) for one, other in zip(found, again, strict=True))
    if name in ("vit", "convnext"):
        with torch.no_grad():
            last = model(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
        assert torch.allclose(found[-1], last.flatten(2).mean(2) if last.dim() == 4 else last.mean(1))


def test_a_sharded_model_has_no_hidden_states_and_one_in_closed_form_has_those_of_its_backbone() -> None:
    sharded, closed = (toy_problem("multi_label", **made) for made in ({"sharded": True}, {"closed_form": True}))
    pixels = closed.sets["forget"].batch(torch.arange(2))[0]
    assert layer_features(sharded.model, pixels) == []
    assert [layer.shape for layer in layer_features(closed.model, pixels)] == [(2, 32)] * 3
