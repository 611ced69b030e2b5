"""Guesses: ridge regressions of scikit-learn's, learned from other people, and right more often than chance."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from oneshui_hf.methods import Context, FaceSet
from oneshui_hf.testing.toy_problem import world
from oneshui_plugins.forget_keys.shallow_probe import PARTS, PENALTY, cross_fitted, dealt, first_layers, gathered, guesses, spread_out


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_each_part_is_guessed_by_a_ridge_regression_on_the_others() -> None:
    features, truth, part = 3 * noise(90, 7) + 2, (noise(90, 4, seed=1) > 0).double(), torch.arange(90) % 5
    told = cross_fitted(features.float(), truth, part).numpy()
    x = features.float().double().numpy()
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    for left_out in range(5):
        out = part.numpy() == left_out
        centred = truth.numpy()[~out] - truth.numpy()[~out].mean(axis=0)
        ridge = Ridge(alpha=PENALTY * 7, fit_intercept=False).fit(x[~out], centred)
        np.testing.assert_allclose(told[out], ridge.predict(x[out]), atol=1e-10)


def test_what_is_true_of_a_person_has_no_say_in_their_own_guess() -> None:
    features, truth, part = noise(60, 9), (noise(60, 3, seed=1) > 0).double(), torch.arange(60) % 4
    other = truth.clone()
    other[part == 2] = 1 - other[part == 2]
    one, two = cross_fitted(features, truth, part), cross_fitted(features, other, part)
    assert torch.equal(one[part == 2], two[part == 2])
    assert not torch.allclose(one[part != 2], two[part != 2])


def test_of_one_person_alone_nothing_is_guessed() -> None:
    assert not cross_fitted(noise(9, 4), (noise(9, 3, seed=1) > 0).double(), torch.zeros(9)).any()


def test_a_person_is_dealt_to_one_part_and_parts_are_even() -> None:
    train = world("multi_label").sets["train"]
    part = dealt(train, 0)
    parts = [part[train.positions_of[person]].unique().tolist() for person in train.positions_of]
    assert all(len(some) == 1 for some in parts)
    counts = Counter(some[0] for some in parts)
    assert set(counts) == set(range(PARTS))
    assert max(counts.values()) - min(counts.values()) <= 1
    assert torch.equal(part, dealt(train, 0))
    assert not torch.equal(part, dealt(train, 1))


@pytest.mark.parametrize("chunk", [7, 500])
def test_the_first_layers_are_read_of_each_photo_and_of_its_mirror_image(chunk: int) -> None:
    w = world("multi_label")
    train = w.sets["train"]
    pixels, _ = train.batch(torch.arange(len(train)))
    layers = first_layers(w.model, train, chunk, w.context())
    with torch.no_grad():
        for version, photos in enumerate((pixels, pixels.flip(-1))):
            said = w.model(pixel_values=photos, output_hidden_states=True).hidden_states
            assert len(said) == 3  # two blocks: a quarter of 2 is rounded to 0, and the middle is what the second block is given
            for features, tokens in zip(layers, said[:2], strict=True):
                rows = tokens[:, 1:].unflatten(1, (4, 4)).mean(dim=2)  # 4 x 4 patches of 4 pixels
                by_hand = torch.cat([tokens[:, 0], *rows.unbind(1)], dim=1)
                torch.testing.assert_close(features.chunk(2)[version], by_hand, atol=1e-4, rtol=1e-4)


def test_maps_are_averaged_over_bands_of_places() -> None:
    maps = noise(3, 5, 8, 6)
    by_hand = maps.numpy().reshape(3, 5, 4, 2, 6).mean(axis=(3, 4)).transpose(0, 2, 1).reshape(3, 20)
    np.testing.assert_allclose(gathered(maps), by_hand, atol=1e-6)
    np.testing.assert_allclose(gathered(maps[:, :, :1, :1]), maps[:, :, 0, 0], atol=1e-6)


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_guesses_tell_what_is_to_be_seen_of_people_who_were_not_met(kind: str) -> None:
    w, draws = world(kind), np.random.default_rng(0)  # type: ignore[arg-type]
    train, people = w.sets["train"], torch.arange(96)
    side = train.batch(people[:1])[0].shape[-1]
    brightness = draws.permutation(np.linspace(40, 215, len(people)))
    photos = np.clip(draws.normal(brightness[:, None, None, None], 20, (len(people), 3, side, side)), 0, 255).astype(np.uint8)
    answer = torch.from_numpy(brightness > 127)
    labels = answer.float().unsqueeze(1).repeat(1, 4) if kind == "multi_label" else answer.long()
    faces = FaceSet(photos, people.numpy(), labels, people, train.preprocess, tuple(f"person {number}" for number in people.tolist()))
    for version in guesses(w.model, faces, 64, w.context()):
        assert version.shape == (labels.shape if kind == "multi_label" else (len(people),))
        if kind == "multi_label":
            assert roc_auc_score(answer, version[:, 0]) > 0.8
        else:  # that it is the true class
            assert version.mean() > 0.5


def test_a_label_that_everybody_has_is_not_guessed_at() -> None:
    assert not spread_out(torch.full((9, 1), 0.1)).any()
    torch.testing.assert_close(spread_out(noise(9, 2)).std(dim=0, correction=0), torch.ones(2).double())


def test_a_model_that_hides_its_layers_leaves_the_ranks_to_its_answers() -> None:
    w = world("multi_label", sharded=True)
    for version in guesses(w.model, w.sets["train"], 64, w.context()):
        assert version.shape == w.sets["train"].labels.shape
        assert not version.any()


def test_guesses_are_the_mean_over_the_layers_each_with_a_spread_of_one() -> None:
    w = world("multi_label")
    train = w.sets["train"]
    told = torch.cat(guesses(w.model, train, 64, w.context()))
    truth, part = train.labels.double().repeat(2, 1), dealt(train, 0).repeat(2)
    each = [cross_fitted(features, truth, part).numpy() for features in first_layers(w.model, train, 64, w.context())]
    by_hand = np.mean([(some - some.mean(axis=0)) / some.std(axis=0) for some in each], axis=0)
    np.testing.assert_allclose(told, by_hand, atol=1e-4)


def test_processes_share_the_photos_and_one_without_any_adds_nothing() -> None:
    w = world("multi_label")
    train = w.sets["train"]
    whole = first_layers(w.model, train, 40, w.context())
    passes = -(-2 * len(train) // 40)
    shares = []
    for index in range(passes + 1):
        place = {"process_index": index, "num_processes": passes + 1, "device": torch.device("cpu")}
        accelerator: Any = SimpleNamespace(**place, reduce=lambda tensor, way: tensor)
        shares.append(first_layers(w.model, train, 40, Context(w.task, 0, accelerator)))
    assert not any(layer.any() for layer in shares[-1])
    for layer, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert torch.equal(torch.stack(parts).sum(dim=0), layer)
