"""Bystanders: statistics over people against numpy, planted harm to a group, and no wrong alarm without any."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from oneshui_hf.data.schema import TaskKind
from oneshui_hf.metrics.attack_signals import label_log_probabilities
from oneshui_hf.metrics.bystanders import BYSTANDERS, MIN_GROUP, bystanders, compare_groups, label_shares, summarise_changes
from oneshui_hf.metrics.comparison import Comparison, Predictions, PredictionsBySet, Settings
from oneshui_hf.models.outputs import losses

PHOTOS, LABELS = 4, 3
PEOPLE = {"retain": 30, "test": 20, "val": 15, "forget": 4}


def predict(seed: int, kind: TaskKind = "multi_label", rise: Mapping[str, torch.Tensor] | None = None) -> PredictionsBySet:
    """Return predictions of a model; photos, labels and people are the same for all seeds. All photos of a person have the same labels.

    Args:
        seed: Of the model's noise.
        kind: What it predicts.
        rise: By set, what is added to the loss of each photo.
    """
    found = {}
    for number, (name, people) in enumerate(PEOPLE.items()):
        of_photos, of_model = (torch.Generator().manual_seed(1000 * number + of) for of in (0, seed + 1))
        identities = 100 * number + torch.arange(people).repeat_interleave(PHOTOS)
        if kind == "multi_label":
            labels = (torch.rand(people, LABELS, generator=of_photos) < 0.5).float().repeat_interleave(PHOTOS, dim=0)
        else:
            labels = torch.randint(LABELS, (people,), generator=of_photos).repeat_interleave(PHOTOS)
        logits = torch.randn(len(identities), LABELS, generator=of_model)
        losses_of_set = losses(logits, labels, kind).double()
        found[name] = Predictions(logits, labels, losses_of_set + (rise or {}).get(name, torch.zeros(1)), identities)
    return found


def measured(model: PredictionsBySet, original: PredictionsBySet | None, kind: TaskKind = "multi_label", **more: Any) -> dict[str, Any]:
    found = bystanders(Comparison(model, original, **more), kind, Settings(labels=("a", "b", "c")))
    assert found is not None
    return found


def by_person(values: torch.Tensor) -> np.ndarray:
    return np.asarray(values.double().reshape(-1, PHOTOS).mean(1))


def expected_summary(changes: np.ndarray) -> dict[str, float]:
    return {
        "mean": changes.mean(),
        "sd": changes.std(ddof=1),
        "worst_tenth": np.sort(changes)[-max(1, len(changes) // 10) :].mean(),
        "largest": changes.max(),
    }


@pytest.mark.parametrize("people", [1, 2, 9, 10, 19, 20, 105])
def test_summary_equals_numpy(people: int) -> None:
    changes = torch.randn(people, generator=torch.Generator().manual_seed(people), dtype=torch.float64)
    expected = (
        expected_summary(changes.numpy()) if people > 1 else dict.fromkeys(("mean", "worst_tenth", "largest"), changes.item()) | {"sd": 0}
    )
    assert summarise_changes(changes) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_loss_changes_are_means_over_the_photos_of_a_person(kind: TaskKind) -> None:
    model, original, oracle = (predict(seed, kind) for seed in range(3))
    found = measured(model, original, kind, oracle=oracle)
    for name in BYSTANDERS:
        changes, spread = (by_person(of[name].losses) - by_person(original[name].losses) for of in (model, oracle))
        assert found[name]["people"] == PEOPLE[name]
        assert found[name]["loss_change"] == pytest.approx(expected_summary(changes), abs=1e-12)
        assert found[name]["beyond_spread"] == np.mean(changes > spread.std(ddof=1))
        assert found["oracle"][name]["loss_change"] == pytest.approx(expected_summary(spread), abs=1e-12)
        assert found["oracle"][name]["beyond_spread"] == np.mean(spread > spread.std(ddof=1))


def test_the_oracle_is_its_own_floor() -> None:
    original, oracle, other = (predict(seed) for seed in range(3))
    found = measured(oracle, original, oracle=oracle, oracles=[other], references=[other])
    assert {name: found[name] for name in BYSTANDERS} == found["oracle"]
    assert all(one["difference"] == one["oracle"] for name in BYSTANDERS for one in found["groups"][name])


def test_doing_nothing_changes_no_one() -> None:
    original = predict(0)
    found = measured(original, original, oracles=[predict(1)], references=[predict(1)])
    for name in BYSTANDERS:
        for part in ("loss_change", "exposure_change"):
            assert found[name][part] == dict.fromkeys(("mean", "sd", "worst_tenth", "largest"), 0.0)
        assert [(one["difference"], one["interval"], one["differs"]) for one in found["groups"][name]] == [(0.0, None, False)] * LABELS


def test_unknown_models() -> None:
    assert bystanders(Comparison(predict(0)), "multi_label", Settings()) is None
    found = bystanders(Comparison(predict(0), predict(1)), "multi_label", Settings())
    assert found is not None
    assert found["oracle"] is None
    for name in BYSTANDERS:
        assert (found[name]["beyond_spread"], found[name]["exposure_change"]) == (None, None)
        assert all((one["oracle"], one["name"]) == (None, None) for one in found["groups"][name])


def test_loss_that_is_nan_leaves_out_its_set() -> None:
    rise = torch.zeros(PEOPLE["retain"] * PHOTOS)
    rise[5] = float("nan")
    found = measured(predict(0, rise={"retain": rise}), predict(1), oracle=predict(2))
    assert found["retain"] is None
    assert found["groups"]["retain"] == []
    assert found["test"] is not None
    assert len(found["groups"]["test"]) == LABELS


# Groups


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_planted_harm_is_found_and_has_the_planted_size(kind: TaskKind) -> None:
    """Everyone with label 1 loses 0.75 more: exactly that difference."""
    original = predict(0, kind)
    labels = original["retain"].labels
    has_label = labels[:, 1] == 1 if kind == "multi_label" else labels == 1
    jitter = torch.randn(PEOPLE["retain"], generator=torch.Generator().manual_seed(7), dtype=torch.float64) / 20
    for noise, size in ((torch.zeros_like(jitter), 1e-12), (jitter, 0.1)):
        harmed = measured(predict(0, kind, {"retain": 0.75 * has_label + noise.repeat_interleave(PHOTOS)}), original, kind)
        worst = harmed["groups"]["retain"][0]
        assert (worst["label"], worst["name"], worst["differs"]) == (1, "b", True)
        assert worst["difference"] == pytest.approx(0.75, abs=size)
        assert worst["people_with"] + worst["people_without"] == PEOPLE["retain"]
        assert not any(one["differs"] for one in harmed["groups"]["test"])
        sizes = [abs(one["difference"]) for one in harmed["groups"]["retain"]]
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_without_harm_no_group_is_named_in_most_draws(share: float) -> None:
    """Skewed changes that do not depend on the labels: by construction of the test at most 5 % of draws name a group of either set."""
    rng, alarms = torch.Generator().manual_seed(0), 0
    for seed in range(200):
        shares = {name: (torch.rand(40, 10, generator=rng) < share).double() for name in BYSTANDERS}
        changes = {name: torch.randn(40, generator=rng, dtype=torch.float64).exp() for name in BYSTANDERS}
        found = compare_groups(changes, shares, Settings(resamples=200, seed=seed), {})
        alarms += any(one["differs"] for of_set in found.values() for one in of_set)
    assert alarms <= 20  # the chance of more is 0.2 % with exactly 5 %


def compare(changes: torch.Tensor, shares: torch.Tensor, **settings: Any) -> list[dict[str, Any]]:
    return compare_groups({"retain": changes}, {"retain": shares}, Settings(**settings), {})["retain"]


def test_interval_is_welchs() -> None:
    rng = torch.Generator().manual_seed(3)
    changes, shares = torch.randn(25, 2, generator=rng, dtype=torch.float64) @ torch.ones(2, dtype=torch.float64), torch.zeros(25, 2)
    shares[:8, 0], shares[5:17, 1] = 1, 1
    for label, one in enumerate(compare(changes, shares, level=0.9)):
        first, second = (changes[shares[:, label] == value].numpy() for value in (1, 0))
        interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.9)
        assert one["difference"] == pytest.approx(first.mean() - second.mean(), abs=1e-12)
        assert one["interval"] == pytest.approx(list(interval), abs=1e-12)


def test_p_value_of_one_label_is_that_of_a_permutation_test() -> None:
    rng = torch.Generator().manual_seed(5)
    changes, shares = torch.randn(24, generator=rng, dtype=torch.float64).exp(), torch.zeros(24, 1)
    shares[:9] = 1
    changes[:9] += 1.5
    [found] = compare(changes, shares, resamples=20_000)

    def statistic(first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray:
        return np.abs(stats.ttest_ind(first, second, axis=axis, equal_var=False).statistic)

    sides = changes[:9].numpy(), changes[9:].numpy()
    expected = stats.permutation_test(sides, statistic, n_resamples=20_000, vectorized=True, alternative="greater", random_state=0).pvalue
    assert 0.01 < expected < 0.5
    assert found["p_value"] == pytest.approx(expected, abs=0.015)  # four standard errors of the difference


def test_p_values_are_adjusted_for_all_labels_of_both_sets() -> None:
    """One of two equal labels has the p-value of one label alone; that of many other labels is larger."""
    rng = torch.Generator().manual_seed(6)
    changes, share = torch.randn(30, generator=rng, dtype=torch.float64), (torch.arange(30) < 12).double()[:, None]
    changes[:12] += 0.75
    others = (torch.rand(30, 20, generator=rng) < 0.5).double()
    [alone] = compare(changes, share)
    twice = compare(changes, torch.cat([share, share], dim=1))
    assert [one["p_value"] for one in twice] == [alone["p_value"]] * 2
    assert compare(changes, torch.cat([share, others], dim=1))[0]["p_value"] > 1.5 * alone["p_value"]
    both = compare_groups({"retain": changes, "test": changes.flip(0)}, {"retain": share, "test": others}, Settings(), {})
    assert both["retain"][0]["p_value"] > 1.5 * alone["p_value"]


def test_small_groups_are_left_out_and_halves_belong_to_neither_side() -> None:
    shares = torch.zeros(12, 4, dtype=torch.float64)
    shares[:MIN_GROUP, 0] = 0.75
    shares[: MIN_GROUP - 1, 1] = 1
    shares[: 12 - MIN_GROUP + 1, 2] = 1
    shares[:, 3] = torch.tensor([1.0] * 5 + [0.5] * 2 + [0.0] * 5)
    found = compare(torch.arange(12, dtype=torch.float64), shares)
    assert [(one["label"], one["people_with"], one["people_without"]) for one in found] == [(0, 5, 7), (3, 5, 5)]
    assert found[1]["difference"] == pytest.approx(2 - 9, abs=1e-12)
    assert compare(torch.arange(4, dtype=torch.float64), shares[:4]) == []


def test_shares_of_labels() -> None:
    identities = torch.tensor([7, 3, 7, 3, 7])
    attributes = torch.tensor([[1.0, 0], [1, 1], [1, 0], [0, 0], [0, 0]])
    of_attributes = Predictions(torch.zeros(5, 2), attributes, torch.zeros(5), identities)
    assert label_shares(of_attributes, "multi_label").tolist() == [[0.5, 0.5], [2 / 3, 0.0]]
    of_classes = replace(of_attributes, labels=torch.tensor([1, 0, 1, 0, 0]))
    assert label_shares(of_classes, "single_label").tolist() == [[1.0, 0.0], [1 / 3, 2 / 3]]


# Exposure


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_exposure_is_the_change_of_the_share_of_dominated_photos(kind: TaskKind) -> None:
    model, original, oracle, other, reference = (predict(seed, kind) for seed in range(5))
    found = measured(model, original, kind, oracle=oracle, oracles=[other], references=[reference])

    def exposure(target: PredictionsBySet, out: PredictionsBySet, name: str) -> np.ndarray:
        ratios = {}
        for of in (name, "val"):
            p, p_out = (label_log_probabilities(one[of].logits, target[of].labels, kind).exp().numpy() for one in (target, out))
            ratios[of] = np.prod(p / (0.65 * p_out + 0.35), axis=1)
        dominated = (ratios[name][:, None] / ratios["val"][None, :] > 2).mean(1)
        return np.asarray(dominated.reshape(-1, PHOTOS).mean(1))

    for name in BYSTANDERS:
        before = exposure(original, other, name)
        for entry, target, out in ((found, model, reference), (found["oracle"], oracle, other)):
            expected = expected_summary(exposure(target, out, name) - before)
            assert entry[name]["exposure_change"] == pytest.approx(expected, abs=1e-9)


# Privacy


def test_numbers_of_identities_and_the_order_of_photos_change_nothing() -> None:
    def renumber(model: PredictionsBySet) -> PredictionsBySet:
        changed = {}
        for name, of in model.items():
            order = torch.randperm(len(of.losses), generator=torch.Generator().manual_seed(1))
            other = 987_650_000 + of.identities[order]
            changed[name] = Predictions(of.logits[order], of.labels[order], of.losses[order], other)
        return changed

    models = [predict(seed) for seed in range(4)]
    plain, other = (
        measured(model, original, oracle=oracle, oracles=[reference], references=[reference])
        for model, original, oracle, reference in (models, map(renumber, models))
    )
    assert _is_close(plain, other)
    assert "98765" not in json.dumps(other)


def _is_close(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_is_close(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(_is_close, first, second))
    return bool(first == pytest.approx(second, abs=1e-9)) if isinstance(first, float) else bool(first == second)
