"""Cross-fitted targets: each photo's logits come from models that were not trained on its identity."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from oneshui_hf.errors import UsageError
from oneshui_hf.methods import Context, losses
from oneshui_hf.reporting import Reporter
from oneshui_hf.testing.toy_problem import ToyProblem, toy_problem
from oneshui_plugins.forget_keys.cross_fit import cross_fitted_logits, predict_folds, regress
from oneshui_plugins.forget_keys.inference import predict_both_versions
from oneshui_plugins.forget_keys.options import ForgetKeysOptions
from oneshui_plugins.forget_keys.targets import CrossFitTargets

# A toy problem of classes trains for seconds.
KINDS = ["multi_label", pytest.param("single_label", marks=pytest.mark.slow)]


class CountingModel(torch.nn.Module):
    """Its first logit is its number; the second the mean of the left half of the photo, which mirroring changes."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.config = number, SimpleNamespace(num_labels=4)

    def forward(self, pixel_values: torch.Tensor) -> Any:
        logits = torch.zeros(len(pixel_values), 4)
        logits[:, 0] = self.number
        logits[:, 1] = pixel_values[..., : pixel_values.shape[-1] // 2].mean(dim=(1, 2, 3))
        return SimpleNamespace(logits=logits)


def recording_context(problem: ToyProblem) -> tuple[Context, list[tuple[list[int], int]]]:
    calls: list[tuple[list[int], int]] = []

    def retrain(left_out: Collection[int], seed: int) -> torch.nn.Module:
        calls.append((list(left_out), seed))
        return CountingModel(len(calls))

    return dataclasses.replace(problem.context(), retrain=retrain), calls


class TrackingReporter(Reporter):
    """Records what is tracked as one piece of work, and its number of items."""

    def __init__(self) -> None:
        self.tracked: list[tuple[str, int | None]] = []

    def track(self, items: Iterable[Any], label: str, total: int | None = None) -> Iterator[Any]:
        self.tracked.append((label, total or len(list(items))))
        yield from items


def test_all_fold_models_are_one_piece_of_work() -> None:
    """So that a log has a line for them every 30 seconds, not one for each epoch of each model."""
    problem = toy_problem("multi_label")
    reporter = TrackingReporter()
    context = dataclasses.replace(recording_context(problem)[0], reporter=reporter)
    assert len(list(predict_folds(problem.sets["train"], problem.sets["val"], ForgetKeysOptions(folds=3, repeats=2), context))) == 6
    assert reporter.tracked == [("Training the fold models", 6)]


def test_each_photo_is_predicted_by_the_model_that_left_its_identity_out() -> None:
    problem = toy_problem("multi_label")
    train, val = problem.sets["train"], problem.sets["val"]
    context, calls = recording_context(problem)
    found = list(predict_folds(train, val, ForgetKeysOptions(folds=3, repeats=1), context))
    assert [len(left_out) for left_out, _ in calls] == [3, 3, 2] and len({seed for _, seed in calls}) == 3
    assert sorted(torch.cat([fold.positions for fold in found]).tolist()) == list(range(len(train)))
    for number, (fold, (left_out, _)) in enumerate(zip(found, calls, strict=True), start=1):
        assert sorted(set(train.identities[fold.positions].tolist())) == left_out
        assert set(fold.logits[..., 0].flatten().tolist()) == {float(number)}
        for faces, positions, logits in ((train, fold.positions, fold.logits), (val, torch.arange(len(val)), fold.val_logits)):
            pixels = faces.batch(positions)[0]
            for version, photos in zip(logits, (pixels, pixels.flip(-1)), strict=True):
                assert torch.allclose(version[:, 1], photos[..., :8].mean(dim=(1, 2, 3)), atol=1e-6)


def test_repetitions_have_other_folds_and_orders() -> None:
    problem = toy_problem("multi_label")
    context, calls = recording_context(problem)
    found = list(predict_folds(problem.sets["train"], problem.sets["val"], ForgetKeysOptions(folds=2, repeats=3), context))
    assert len(found) == len({seed for _, seed in calls}) == len({tuple(left_out) for left_out, _ in calls}) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_the_mean_of_the_repetitions_regressed_on_val(kind: Any) -> None:
    problem, options = toy_problem(kind), ForgetKeysOptions(folds=2, repeats=2)
    train, val, context = problem.sets["train"], problem.sets["val"], problem.context()
    val_logits = torch.stack([version.logits for version in predict_both_versions(problem.model, val, context)])
    expected = np.zeros((2, len(train), 4))
    for fold in predict_folds(train, val, options, context):
        x, y, z = (
            some.double() if kind == "multi_label" else some.double().log_softmax(-1) for some in (fold.val_logits, val_logits, fold.logits)
        )
        for label in range(4):
            slope, intercept = np.polyfit(x[..., label].flatten(), y[..., label].flatten(), 1)
            expected[:, fold.positions, label] += (slope * z[..., label].numpy() + intercept) / 2
    found = cross_fitted_logits(train, val, val_logits, options, context)
    assert np.allclose(torch.stack(found), expected, rtol=1e-4, atol=1e-4)


def test_a_constant_logit_predicts_the_mean() -> None:
    y = torch.tensor([[1.0], [2.0], [6.0]])
    slope, intercept = regress(torch.full((3, 1), 7.0), y)
    assert (slope.tolist(), intercept.tolist()) == ([0.0], [3.0])


def test_targets_are_the_logits_of_the_photo_or_its_mirror_image() -> None:
    logits = (torch.arange(12.0).view(6, 2), 100 + torch.arange(12.0).view(6, 2))
    positions, mirrored = torch.tensor([4, 4, 0]), torch.tensor([False, True, True])
    found = CrossFitTargets(logits)(positions, torch.full((3, 2), torch.nan), mirrored)
    assert found.tolist() == [[8.0, 9.0], [108.0, 109.0], [100.0, 101.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_have_the_loss_of_models_that_never_met_the_person(kind: Any) -> None:
    problem = toy_problem(kind)
    train, val, context = problem.sets["train"], problem.sets["val"], problem.context()
    memorised, unseen = (predict_both_versions(problem.model, faces, context) for faces in (train, val))
    val_logits = torch.stack([version.logits for version in unseen])
    targets, _ = cross_fitted_logits(train, val, val_logits, ForgetKeysOptions(folds=4, repeats=1), context)

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> float:
        return float(losses(logits, labels, kind).mean())

    before, unseen_loss = (loss(version[0].logits, version[0].labels) for version in (memorised, unseen))
    assert before < 0.3 * unseen_loss
    assert loss(targets, train.labels) > 0.5 * unseen_loss


def test_wrong_use_is_refused_in_one_sentence() -> None:
    problem = toy_problem("multi_label")
    train, context = problem.sets["train"], problem.context()
    with pytest.raises(UsageError, match="--folds 9 needs as many training identities, and there are 8"):
        list(predict_folds(train, train, ForgetKeysOptions(folds=9), context))
    with pytest.raises(UsageError, match="--targets quantile"):
        list(predict_folds(train, train, ForgetKeysOptions(), dataclasses.replace(context, retrain=None)))
