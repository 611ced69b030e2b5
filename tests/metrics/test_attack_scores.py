"""AUC, ROC curve, TPR, thresholds and calibration against scikit-learn, plain loops and theory."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn_metrics

from oneshui_hf.errors import UsageError
from oneshui_hf.metrics.attack_scores import AttackResult, auc, best_threshold, roc_curve, score_attack, strongest_attack, tpr_at_fpr
from oneshui_hf.metrics.attacks import loss_attack
from support.attack_data import normal, rng, two_groups


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40), st.sampled_from([2, 5, 10**6]))
def test_auc_with_ties_matches_scikit_learn(seed: int, n: int, m: int, levels: int) -> None:
    scores = torch.randint(levels, (n + m,), generator=rng(seed)).double()
    truth = [1] * n + [0] * m
    assert auc(scores[:n], scores[n:]) == pytest.approx(sklearn_metrics.roc_auc_score(truth, scores.numpy()), abs=1e-12)
    assert auc(scores[:n], scores[n:]) + auc(scores[n:], scores[:n]) == pytest.approx(1)


def test_auc_of_equal_scores_is_one_half() -> None:
    assert auc(torch.full((7,), 3.0), torch.full((5,), 3.0)) == 0.5


def test_auc_of_empty_or_nan_scores_is_nan() -> None:
    some = torch.tensor([1.0, 2.0])
    for members, nonmembers in ((some[:0], some), (some, some[:0]), (some, some * math.nan), (some * math.nan, some)):
        assert math.isnan(auc(members, nonmembers))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 5, 10**6]))
def test_roc_curve_matches_scikit_learn_and_its_area_is_the_auc(seed: int, n: int, m: int, levels: int) -> None:
    scores = torch.randint(levels, (n + m,), generator=rng(seed)).double()
    fpr, tpr = roc_curve(scores[:n], scores[n:])
    theirs = sklearn_metrics.roc_curve([1] * n + [0] * m, scores.numpy(), drop_intermediate=False)
    assert (fpr.dtype, tpr.dtype) == (torch.float64, torch.float64)
    np.testing.assert_allclose(fpr.numpy(), theirs[0], rtol=0, atol=1e-15)
    np.testing.assert_allclose(tpr.numpy(), theirs[1], rtol=0, atol=1e-15)
    assert torch.trapezoid(tpr, fpr).item() == pytest.approx(auc(scores[:n], scores[n:]), abs=1e-12)


def test_roc_curve_of_empty_or_nan_scores_has_no_points() -> None:
    some = torch.tensor([1.0, 2.0])
    for members, nonmembers in ((some[:0], some), (some, some[:0]), (some, some * math.nan), (some * math.nan, some)):
        assert [len(side) for side in roc_curve(members, nonmembers)] == [0, 0]


def tpr_by_loop(members: torch.Tensor, nonmembers: torch.Tensor, fpr: float) -> float:
    best = 0.0
    for threshold in [math.inf, *members.tolist(), *nonmembers.tolist()]:
        false_positives = sum(s >= threshold for s in nonmembers.tolist())
        if false_positives / len(nonmembers) <= fpr:
            best = max(best, sum(s >= threshold for s in members.tolist()) / len(members))
    return best


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 30), st.integers(10, 40), st.sampled_from([3, 8, 10**6]), st.sampled_from([0.1, 0.3, 0.5, 1.0])
)
def test_tpr_at_fpr_matches_a_loop_over_thresholds(seed: int, n: int, m: int, levels: int, fpr: float) -> None:
    scores = torch.randint(levels, (n + m,), generator=rng(seed)).double()
    assert tpr_at_fpr(scores[:n], scores[n:], fpr) == pytest.approx(tpr_by_loop(scores[:n], scores[n:], fpr))


@pytest.mark.parametrize(("count", "resolved"), [(9, []), (10, [0.1]), (99, [0.1]), (100, [0.1, 0.01]), (1000, [0.1, 0.01, 0.001])])
def test_rates_that_the_sample_does_not_resolve_are_none(count: int, resolved: list[float]) -> None:
    members, nonmembers = normal(rng(0), 20), normal(rng(1), count)
    found = loss_attack(members, nonmembers, (torch.arange(20), torch.arange(count)), rng(0))
    assert [fpr for fpr, rate in found.tpr.items() if rate is not None] == resolved
    assert found.smallest_fpr == 1 / count


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(1, 20), st.sampled_from([2, 4, 10**6]))
def test_best_threshold_matches_a_loop(seed: int, n: int, m: int, levels: int) -> None:
    scores = torch.randint(levels, (n + m,), generator=rng(seed)).double()
    threshold, sign = best_threshold(scores[:n], scores[n:])

    def balanced(threshold: float, sign: int) -> float:
        is_above = [sign * (s - threshold) > 0 for s in scores.tolist()]
        return (sum(is_above[:n]) / n + 1 - sum(is_above[n:]) / m) / 2

    best = max(balanced(t, s) for t in [x + d for x in scores.tolist() for d in (-0.5, 0.5)] for s in (1, -1))
    if best > 0.5:
        assert balanced(threshold, sign) == pytest.approx(best)


# ---------------------------------------------------------------- score_attack


def test_gaussian_losses_at_a_known_distance_give_the_theoretical_auc() -> None:
    distance = 1.2
    members, nonmembers = normal(rng(0), 20_000) - distance, normal(rng(1), 20_000)
    found = loss_attack(members, nonmembers, (torch.arange(20_000), torch.arange(20_000)), rng(0))
    assert found.auc == pytest.approx(stats.norm.cdf(distance / math.sqrt(2)), abs=0.006)
    assert found.auc_best_direction == pytest.approx(found.auc, abs=1e-3)
    assert found.balanced_accuracy == pytest.approx(stats.norm.cdf(distance / 2), abs=0.01)
    for fpr in (0.1, 0.01):
        assert found.tpr[fpr] == pytest.approx(stats.norm.cdf(distance + stats.norm.ppf(fpr)), abs=0.03)
    assert found.sign == 1
    assert found.direction == "0.5 is ideal: the attacker cannot distinguish members from non-members"


def test_forgetting_too_much_is_detected_like_forgetting_too_little() -> None:
    ids = two_groups()
    members, nonmembers = normal(rng(0), len(ids[0])), normal(rng(1), len(ids[1]))
    little, much = (loss_attack(members + shift, nonmembers - nonmembers.mean(), ids, rng(0)) for shift in (-2, 2))
    assert little.auc > 0.85
    assert much.auc < 0.15  # easily mistaken for success if lower is considered better
    assert (little.sign, much.sign) == (1, -1)
    for found in (little, much):
        assert found.auc_best_direction > 0.85
        assert found.balanced_accuracy > 0.75
        assert found.tpr[0.1] is not None
        assert found.tpr[0.1] > 0.5


def test_choosing_the_direction_adds_no_optimistic_bias() -> None:
    """Without a difference between the sides, but with different people, the mean is 0.5. Choosing on the scored photos is biased."""
    ids = two_groups((6, 10), 8)
    held_out, accuracies, biased = [], [], []
    for seed in range(90):
        generator = rng(seed)
        own = normal(generator, 16)
        scores = own.repeat_interleave(8) + normal(generator, 128)
        found = score_attack("x", scores[:48], scores[48:], ids, generator)
        held_out.append(found.auc_best_direction)
        accuracies.append(found.balanced_accuracy)
        biased.append(max(found.auc, 1 - found.auc))
    assert np.mean(held_out) == pytest.approx(0.5, abs=2.5 * stats.sem(held_out))
    assert np.mean(accuracies) == pytest.approx(0.5, abs=2.5 * stats.sem(accuracies))
    assert stats.sem(held_out) < 0.015
    assert np.mean(biased) > 0.57


def test_equal_scores_give_one_half() -> None:
    ids = two_groups()
    found = loss_attack(torch.ones(len(ids[0])), torch.ones(len(ids[1])), ids, rng(0))
    assert (found.auc, found.auc_best_direction, found.balanced_accuracy, found.tpr[0.1], found.sign) == (0.5, 0.5, 0.5, 0.0, 1)


def test_photos_of_one_person_are_never_split_between_calibration_and_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = two_groups((5, 7), 3)
    seen: list[tuple[set[float], set[float]]] = []

    def record(members: torch.Tensor, nonmembers: torch.Tensor) -> tuple[float, int]:
        seen.append((set(members.tolist()), set(nonmembers.tolist())))
        return 0.0, 1

    monkeypatch.setattr("oneshui_hf.metrics.attack_scores.best_threshold", record)
    score_attack("x", torch.arange(15.0), torch.arange(100.0, 121.0), ids, rng(0))
    assert len(seen) == 40
    for members, nonmembers in seen:
        assert {m // 3 for m in members} == {m // 3 for m in range(15) if float(m) in members}
        assert len(members) == 3 * len({m // 3 for m in members}) in (6, 9)
        assert len(nonmembers) == 3 * len({(n - 100) // 3 for n in nonmembers}) in (9, 12)
    assert {frozenset(m) for m, _ in seen[::2]} != {frozenset(seen[0][0])}


def test_one_forgotten_person_has_no_auc_in_the_best_direction() -> None:
    ids = (torch.zeros(12, dtype=torch.int64), torch.arange(30))
    found = loss_attack(normal(rng(0), 12) - 3, normal(rng(1), 30), ids, rng(0))
    assert found.auc > 0.9
    assert math.isnan(found.auc_best_direction)
    assert math.isnan(found.balanced_accuracy)


def test_nan_losses_give_nan_and_rank_first() -> None:
    ids = two_groups()
    members = normal(rng(0), len(ids[0]))
    members[3] = math.nan
    found = loss_attack(members, normal(rng(1), len(ids[1])), ids, rng(0))
    assert math.isnan(found.auc)
    assert math.isnan(found.auc_best_direction)
    assert math.isnan(found.tpr[0.1] or 0)
    valid = loss_attack(normal(rng(0), len(ids[0])) - 9, normal(rng(1), len(ids[1])), ids, rng(0))
    assert strongest_attack([valid, found]) is found


def test_every_score_needs_an_identity() -> None:
    with pytest.raises(UsageError, match="identity of every member"):
        score_attack("x", torch.zeros(3), torch.zeros(3), (torch.arange(3), torch.arange(2)), rng(0))


def test_same_generator_gives_the_same_result_and_global_rng_is_unchanged() -> None:
    ids = two_groups()
    members, nonmembers = normal(rng(0), len(ids[0])) - 0.3, normal(rng(1), len(ids[1]))
    state = torch.get_rng_state()
    first, second = (loss_attack(members, nonmembers, ids, rng(7)) for _ in range(2))
    assert (first.auc_best_direction, first.balanced_accuracy) == (second.auc_best_direction, second.balanced_accuracy)
    assert torch.equal(state, torch.get_rng_state())


def test_strongest_attack_includes_forgetting_too_much() -> None:
    none = torch.zeros(2)
    weak, strong, over = (
        AttackResult(n, none, none, a, e, 0.5, {}, 0.5) for n, a, e in (("w", 0.6, 0.6), ("s", 0.7, 0.68), ("o", 0.1, 0.9))
    )
    assert strongest_attack([weak, strong, over]) is over
    assert strongest_attack([weak, strong]) is strong
    assert strongest_attack([replace(weak, auc=0.2, auc_best_direction=math.nan), strong]).name == "w"
    with pytest.raises(UsageError, match="no attack"):
        strongest_attack([])
