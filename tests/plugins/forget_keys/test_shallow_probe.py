"""The shallow probe: ridge regressions that agree with scikit-learn's, are trained on other identities, and beat chance."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from oneshui_hf.methods import Context, FaceSet, generator
from oneshui_hf.testing.toy_problem import toy_problem
from oneshui_plugins.forget_keys.folds import assign_folds
from oneshui_plugins.forget_keys.shallow_probe import (
    FOLDS,
    RIDGE_PENALTY,
    cross_fit_ridge,
    pool_bands,
    shallow_features,
    shallow_probe_scores,
    standardize,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_each_fold_is_predicted_by_a_ridge_regression_on_the_others() -> None:
    features, truth, fold = 3 * noise(90, 7) + 2, (noise(90, 4, seed=1) > 0).double(), torch.arange(90) % 5
    predicted = cross_fit_ridge(features.float(), truth, fold).numpy()
    x = features.float().double().numpy()
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    for held_out in range(5):
        out = fold.numpy() == held_out
        centred = truth.numpy()[~out] - truth.numpy()[~out].mean(axis=0)
        ridge = Ridge(alpha=RIDGE_PENALTY * 7, fit_intercept=False).fit(x[~out], centred)
        np.testing.assert_allclose(predicted[out], ridge.predict(x[out]), atol=1e-10)


def test_labels_of_an_identity_do_not_affect_its_own_prediction() -> None:
    features, truth, fold = noise(60, 9), (noise(60, 3, seed=1) > 0).double(), torch.arange(60) % 4
    other = truth.clone()
    other[fold == 2] = 1 - other[fold == 2]
    one, two = cross_fit_ridge(features, truth, fold), cross_fit_ridge(features, other, fold)
    assert torch.equal(one[fold == 2], two[fold == 2])
    assert not torch.allclose(one[fold != 2], two[fold != 2])


def test_single_fold_has_predictions_of_zero() -> None:
    assert not cross_fit_ridge(noise(9, 4), (noise(9, 3, seed=1) > 0).double(), torch.zeros(9)).any()


def test_an_identity_is_in_one_fold_and_folds_are_even() -> None:
    train = toy_problem("multi_label").sets["train"]
    fold = assign_folds(train, FOLDS, generator(0, "parts"))
    folds = [fold[train.positions_of[identity]].unique().tolist() for identity in train.positions_of]
    assert all(len(some) == 1 for some in folds)
    counts = Counter(some[0] for some in folds)
    assert set(counts) == set(range(FOLDS))
    assert max(counts.values()) - min(counts.values()) <= 1
    assert torch.equal(fold, assign_folds(train, FOLDS, generator(0, "parts")))
    assert not torch.equal(fold, assign_folds(train, FOLDS, generator(1, "parts")))


@pytest.mark.parametrize("chunk", [7, 500])
def test_shallow_features_are_those_of_each_photo_and_its_mirror_image(chunk: int) -> None:
    problem = toy_problem("multi_label")
    train = problem.sets["train"]
    pixels, _ = train.batch(torch.arange(len(train)))
    layers = shallow_features(problem.model, train, chunk, problem.context())
    with torch.no_grad():
        for version, photos in enumerate((pixels, pixels.flip(-1))):
            hidden = problem.model(pixel_values=photos, output_hidden_states=True).hidden_states
            assert len(hidden) == 3  # two blocks: a quarter of 2 is rounded to 0, and the middle is the input of the second block
            for features, tokens in zip(layers, hidden[:2], strict=True):
                rows = tokens[:, 1:].unflatten(1, (4, 4)).mean(dim=2)  # 4 x 4 patches of 4 pixels
                by_hand = torch.cat([tokens[:, 0], *rows.unbind(1)], dim=1)
                torch.testing.assert_close(features.chunk(2)[version], by_hand, atol=1e-4, rtol=1e-4)


def test_maps_are_averaged_over_bands() -> None:
    maps = noise(3, 5, 8, 6)
    by_hand = maps.numpy().reshape(3, 5, 4, 2, 6).mean(axis=(3, 4)).transpose(0, 2, 1).reshape(3, 20)
    np.testing.assert_allclose(torch.cat(pool_bands(maps), dim=1), by_hand, atol=1e-6)
    np.testing.assert_allclose(torch.cat(pool_bands(maps[:, :, :1, :1]), dim=1), maps[:, :, 0, 0], atol=1e-6)


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_scores_predict_a_visible_attribute_of_held_out_identities(kind: str) -> None:
    problem, rng = toy_problem(kind), np.random.default_rng(0)  # type: ignore[arg-type]
    train, identities = problem.sets["train"], torch.arange(96)
    side = train.batch(identities[:1])[0].shape[-1]
    brightness = rng.permutation(np.linspace(40, 215, len(identities)))
    photos = np.clip(rng.normal(brightness[:, None, None, None], 20, (len(identities), 3, side, side)), 0, 255).astype(np.uint8)
    bright = torch.from_numpy(brightness > 127)
    labels = bright.float().unsqueeze(1).repeat(1, 4) if kind == "multi_label" else bright.long()
    names = tuple(f"person {number}" for number in identities.tolist())
    faces = FaceSet(photos, identities.numpy(), labels, identities, train.preprocess, names)
    for scores in shallow_probe_scores(problem.model, faces, 64, problem.context()):
        assert scores.shape == (labels.shape if kind == "multi_label" else (len(identities),))
        if kind == "multi_label":
            assert roc_auc_score(bright, scores[:, 0]) > 0.8
        else:  # the score of the true class
            assert scores.mean() > 0.5


def test_constant_columns_become_zero() -> None:
    assert not standardize(torch.full((9, 1), 0.1)).any()
    torch.testing.assert_close(standardize(noise(9, 2)).std(dim=0, correction=0), torch.ones(2).double())


def test_model_without_hidden_states_has_scores_of_zero() -> None:
    problem = toy_problem("multi_label", sharded=True)
    for scores in shallow_probe_scores(problem.model, problem.sets["train"], 64, problem.context()):
        assert scores.shape == problem.sets["train"].labels.shape
        assert not scores.any()


def test_scores_are_the_mean_of_the_standardized_predictions_of_the_layers() -> None:
    problem = toy_problem("multi_label")
    train = problem.sets["train"]
    scores = torch.cat(shallow_probe_scores(problem.model, train, 64, problem.context()))
    truth, fold = train.labels.double().repeat(2, 1), assign_folds(train, FOLDS, generator(0, "parts")).repeat(2)
    features = shallow_features(problem.model, train, 64, problem.context())
    each = [cross_fit_ridge(layer, truth, fold).numpy() for layer in features]
    by_hand = np.mean([(some - some.mean(axis=0)) / some.std(axis=0) for some in each], axis=0)
    np.testing.assert_allclose(scores, by_hand, atol=1e-4)


def test_processes_share_the_photos_and_one_without_any_contributes_zeros() -> None:
    problem = toy_problem("multi_label")
    train = problem.sets["train"]
    whole = shallow_features(problem.model, train, 40, problem.context())
    passes = -(-2 * len(train) // 40)
    shares = []
    for index in range(passes + 1):
        process = {"process_index": index, "num_processes": passes + 1, "device": torch.device("cpu")}
        accelerator: Any = SimpleNamespace(**process, reduce=lambda tensor, way: tensor)
        shares.append(shallow_features(problem.model, train, 40, Context(problem.task, 0, accelerator)))
    assert not any(layer.any() for layer in shares[-1])
    for layer, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert torch.equal(torch.stack(parts).sum(dim=0), layer)
