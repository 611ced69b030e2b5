"""Membership attacks against scikit-learn, plain loops from the formulas, and worlds in which the answer is known."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve

from oneshui_hf.data.schema import TaskKind
from oneshui_hf.errors import UsageError
from oneshui_hf.metrics.attack_scores import Attack, auc, best_threshold, judge, roc, strongest, tpr_at_fpr
from oneshui_hf.metrics.attack_signals import Signals, confidence_features, label_log_probabilities, scaled_logits
from oneshui_hf.metrics.attacks import dominance, fit_logistic, likelihood_ratios, logistic_attack, loss_attack, rmia, u_lira
from oneshui_hf.metrics.intervals import auc_interval
from oneshui_hf.models.outputs import losses

KINDS: tuple[TaskKind, ...] = ("multi_label", "single_label")


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def labels_of(kind: TaskKind, count: int, width: int, generator: torch.Generator) -> torch.Tensor:
    if kind == "multi_label":
        return (torch.rand(count, width, generator=generator) < 0.4).float()
    return torch.randint(width, (count,), generator=generator)


def two_groups(seed: int, people: tuple[int, int] = (10, 30), photos: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(people[0]).repeat_interleave(photos), 1000 + torch.arange(people[1]).repeat_interleave(photos)


# ---------------------------------------------------------------- AUC, TPR at a low FPR, thresholds


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40), st.sampled_from([2, 5, 10**6]))
def test_auc_is_that_of_scikit_learn_with_ties(seed: int, n: int, m: int, levels: int) -> None:
    scores = torch.randint(levels, (n + m,), generator=draws(seed)).double()
    truth = [1] * n + [0] * m
    assert auc(scores[:n], scores[n:]) == pytest.approx(roc_auc_score(truth, scores.numpy()), abs=1e-12)
    assert auc(scores[:n], scores[n:]) + auc(scores[n:], scores[:n]) == pytest.approx(1)


def test_auc_of_equal_scores_is_a_half() -> None:
    assert auc(torch.full((7,), 3.0), torch.full((5,), 3.0)) == 0.5


def test_auc_that_is_not_known_has_no_number() -> None:
    some = torch.tensor([1.0, 2.0])
    for members, nonmembers in ((some[:0], some), (some, some[:0]), (some, some * math.nan), (some * math.nan, some)):
        assert math.isnan(auc(members, nonmembers))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 5, 10**6]))
def test_roc_is_that_of_scikit_learn_and_its_area_the_auc(seed: int, n: int, m: int, levels: int) -> None:
    scores = torch.randint(levels, (n + m,), generator=draws(seed)).double()
    fpr, tpr = roc(scores[:n], scores[n:])
    theirs = roc_curve([1] * n + [0] * m, scores.numpy(), drop_intermediate=False)
    assert (fpr.dtype, tpr.dtype) == (torch.float64, torch.float64)
    np.testing.assert_allclose(fpr.numpy(), theirs[0], rtol=0, atol=1e-15)
    np.testing.assert_allclose(tpr.numpy(), theirs[1], rtol=0, atol=1e-15)
    assert torch.trapezoid(tpr, fpr).item() == pytest.approx(auc(scores[:n], scores[n:]), abs=1e-12)


def test_roc_that_is_not_known_has_no_points() -> None:
    some = torch.tensor([1.0, 2.0])
    for members, nonmembers in ((some[:0], some), (some, some[:0]), (some, some * math.nan), (some * math.nan, some)):
        assert [len(side) for side in roc(members, nonmembers)] == [0, 0]


def tpr_by_loop(members: torch.Tensor, nonmembers: torch.Tensor, fpr: float) -> float:
    best = 0.0
    for threshold in [math.inf, *members.tolist(), *nonmembers.tolist()]:
        accused = sum(s >= threshold for s in nonmembers.tolist())
        if accused / len(nonmembers) <= fpr:
            best = max(best, sum(s >= threshold for s in members.tolist()) / len(members))
    return best


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 30), st.integers(10, 40), st.sampled_from([3, 8, 10**6]), st.sampled_from([0.1, 0.3, 0.5, 1.0])
)
def test_tpr_at_fpr_is_that_of_a_loop_over_thresholds(seed: int, n: int, m: int, levels: int, fpr: float) -> None:
    scores = torch.randint(levels, (n + m,), generator=draws(seed)).double()
    assert tpr_at_fpr(scores[:n], scores[n:], fpr) == pytest.approx(tpr_by_loop(scores[:n], scores[n:], fpr))


@pytest.mark.parametrize(("strangers", "resolved"), [(9, []), (10, [0.1]), (99, [0.1]), (100, [0.1, 0.01]), (1000, [0.1, 0.01, 0.001])])
def test_shares_that_the_sample_cannot_resolve_are_not_told(strangers: int, resolved: list[float]) -> None:
    members, nonmembers = normal(draws(0), 20), normal(draws(1), strangers)
    found = loss_attack(members, nonmembers, (torch.arange(20), torch.arange(strangers)), draws(0))
    assert [fpr for fpr, share in found.tpr.items() if share is not None] == resolved
    assert found.smallest_fpr == 1 / strangers


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(1, 20), st.sampled_from([2, 4, 10**6]))
def test_best_threshold_is_that_of_a_loop(seed: int, n: int, m: int, levels: int) -> None:
    scores = torch.randint(levels, (n + m,), generator=draws(seed)).double()
    threshold, sign = best_threshold(scores[:n], scores[n:])

    def balanced(threshold: float, sign: int) -> float:
        says = [sign * (s - threshold) > 0 for s in scores.tolist()]
        return (sum(says[:n]) / n + 1 - sum(says[n:]) / m) / 2

    best = max(balanced(t, s) for t in [x + d for x in scores.tolist() for d in (-0.5, 0.5)] for s in (1, -1))
    if best > 0.5:
        assert balanced(threshold, sign) == pytest.approx(best)


# ---------------------------------------------------------------- what judge promises


def test_gaussian_losses_a_known_distance_apart_give_the_auc_of_theory() -> None:
    distance = 1.2
    members, nonmembers = normal(draws(0), 20_000) - distance, normal(draws(1), 20_000)
    found = loss_attack(members, nonmembers, (torch.arange(20_000), torch.arange(20_000)), draws(0))
    assert found.auc == pytest.approx(stats.norm.cdf(distance / math.sqrt(2)), abs=0.006)
    assert found.auc_either_way == pytest.approx(found.auc, abs=1e-3)
    assert found.balanced_accuracy == pytest.approx(stats.norm.cdf(distance / 2), abs=0.01)
    for fpr in (0.1, 0.01):
        assert found.tpr[fpr] == pytest.approx(stats.norm.cdf(distance + stats.norm.ppf(fpr)), abs=0.03)
    assert found.sign == 1
    assert found.direction == "0.5 is ideal: the attacker cannot tell"


def test_forgetting_too_much_is_as_telling_as_too_little() -> None:
    ids = two_groups(0)
    members, nonmembers = normal(draws(0), len(ids[0])), normal(draws(1), len(ids[1]))
    little, much = (loss_attack(members + shift, nonmembers - nonmembers.mean(), ids, draws(0)) for shift in (-2, 2))
    assert little.auc > 0.85
    assert much.auc < 0.15  # which whoever thinks "lower is better" takes for success
    assert (little.sign, much.sign) == (1, -1)
    for found in (little, much):
        assert found.auc_either_way > 0.85
        assert found.balanced_accuracy > 0.75
        assert found.tpr[0.1] is not None
        assert found.tpr[0.1] > 0.5


def test_choosing_the_direction_adds_no_optimism() -> None:
    """Over many worlds without a difference, but with people who differ, the mean is 0.5; who chooses on what he scores gains."""
    ids = two_groups(0, (6, 10), 8)
    honest, accuracies, hopeful = [], [], []
    for seed in range(90):
        generator = draws(seed)
        own = normal(generator, 16)
        scores = own.repeat_interleave(8) + normal(generator, 128)
        found = judge("x", scores[:48], scores[48:], ids, generator)
        honest.append(found.auc_either_way)
        accuracies.append(found.balanced_accuracy)
        hopeful.append(max(found.auc, 1 - found.auc))
    assert np.mean(honest) == pytest.approx(0.5, abs=2.5 * stats.sem(honest))
    assert np.mean(accuracies) == pytest.approx(0.5, abs=2.5 * stats.sem(accuracies))
    assert stats.sem(honest) < 0.015
    assert np.mean(hopeful) > 0.57


def test_scores_that_are_all_equal_give_a_half() -> None:
    ids = two_groups(0)
    found = loss_attack(torch.ones(len(ids[0])), torch.ones(len(ids[1])), ids, draws(0))
    assert (found.auc, found.auc_either_way, found.balanced_accuracy, found.tpr[0.1], found.sign) == (0.5, 0.5, 0.5, 0.0, 1)


def test_photos_of_one_person_are_never_split_between_choosing_and_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = two_groups(0, (5, 7), 3)
    seen: list[tuple[set[float], set[float]]] = []

    def note(members: torch.Tensor, nonmembers: torch.Tensor) -> tuple[float, int]:
        seen.append((set(members.tolist()), set(nonmembers.tolist())))
        return 0.0, 1

    monkeypatch.setattr("oneshui_hf.metrics.attack_scores.best_threshold", note)
    judge("x", torch.arange(15.0), torch.arange(100.0, 121.0), ids, draws(0))
    assert len(seen) == 40
    for members, nonmembers in seen:
        assert {m // 3 for m in members} == {m // 3 for m in range(15) if float(m) in members}
        assert len(members) == 3 * len({m // 3 for m in members}) in (6, 9)
        assert len(nonmembers) == 3 * len({(n - 100) // 3 for n in nonmembers}) in (9, 12)
    assert {frozenset(m) for m, _ in seen[::2]} != {frozenset(seen[0][0])}


def test_one_forgotten_person_cannot_be_halved() -> None:
    ids = (torch.zeros(12, dtype=torch.int64), torch.arange(30))
    found = loss_attack(normal(draws(0), 12) - 3, normal(draws(1), 30), ids, draws(0))
    assert found.auc > 0.9
    assert math.isnan(found.auc_either_way)
    assert math.isnan(found.balanced_accuracy)


def test_a_model_that_broke_down_gets_no_number() -> None:
    ids = two_groups(0)
    members = normal(draws(0), len(ids[0]))
    members[3] = math.nan
    found = loss_attack(members, normal(draws(1), len(ids[1])), ids, draws(0))
    assert math.isnan(found.auc)
    assert math.isnan(found.auc_either_way)
    assert math.isnan(found.tpr[0.1] or 0)
    fine = loss_attack(normal(draws(0), len(ids[0])) - 9, normal(draws(1), len(ids[1])), ids, draws(0))
    assert strongest([fine, found]) is found


def test_identities_must_fit() -> None:
    with pytest.raises(UsageError, match="identity of every member"):
        judge("x", torch.zeros(3), torch.zeros(3), (torch.arange(3), torch.arange(2)), draws(0))


def test_same_generator_gives_the_same_attack_and_leaves_global_randomness_alone() -> None:
    ids = two_groups(0)
    members, nonmembers = normal(draws(0), len(ids[0])) - 0.3, normal(draws(1), len(ids[1]))
    state = torch.get_rng_state()
    first, second = (loss_attack(members, nonmembers, ids, draws(7)) for _ in range(2))
    assert (first.auc_either_way, first.balanced_accuracy) == (second.auc_either_way, second.balanced_accuracy)
    assert torch.equal(state, torch.get_rng_state())


def test_the_strongest_is_reported_and_over_forgetting_counts() -> None:
    none = torch.zeros(2)
    weak, strong, over = (Attack(n, none, none, a, e, 0.5, {}, 0.5) for n, a, e in (("w", 0.6, 0.6), ("s", 0.7, 0.68), ("o", 0.1, 0.9)))
    assert strongest([weak, strong, over]) is over
    assert strongest([weak, strong]) is strong
    assert strongest([replace(weak, auc=0.2, auc_either_way=math.nan), strong]).name == "w"
    with pytest.raises(UsageError, match="no attack"):
        strongest([])


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize("kind", KINDS)
def test_signals_are_the_probability_of_the_label_and_its_logit(kind: TaskKind) -> None:
    logits, labels = normal(draws(0), 2, 6, 4), labels_of(kind, 6, 4, draws(1))
    if kind == "multi_label":
        p = logits.sigmoid()
        p = torch.where(labels == 1, p, 1 - p)
    else:
        p = torch.stack([logits.softmax(-1)[:, i, labels[i]] for i in range(6)], 1).unsqueeze(-1)
    torch.testing.assert_close(label_log_probabilities(logits, labels, kind), p.log())
    torch.testing.assert_close(scaled_logits(logits, labels, kind), p.log() - (1 - p).log())
    assert label_log_probabilities(logits[0].float(), labels, kind).shape == p.shape[1:]


def test_signals_of_certain_models_are_finite() -> None:
    """As a probability 1 - 1e-30 is 1, and its logit infinite."""
    logits = torch.tensor([[70.0, -70.0]])
    assert scaled_logits(logits, torch.tensor([[1.0, 1.0]]), "multi_label").tolist() == [[70.0, -70.0]]
    assert scaled_logits(logits, torch.tensor([0]), "single_label").tolist() == [[140.0]]
    assert label_log_probabilities(logits, torch.tensor([[0.0, 1.0]]), "multi_label").tolist() == [[-70.0, -70.0]]


def test_confidence_is_the_margin_and_needs_no_label() -> None:
    logits, loss = torch.tensor([[1.0, 4.0, 3.5], [-2.0, 0.0, 5.0]]), torch.tensor([0.25, 0.5])
    assert confidence_features(logits, loss, "single_label").tolist() == [[0.25, 0.5], [0.5, 5.0]]
    torch.testing.assert_close(
        confidence_features(logits, loss, "multi_label"),
        torch.tensor([[0.25, 8.5 / 3], [0.5, 7 / 3]], dtype=torch.float64),
        rtol=0,
        atol=1e-12,
    )


# ---------------------------------------------------------------- RMIA


def rmia_by_loop(x: Signals, z: Signals, a: float, gamma: float) -> list[float]:
    """The formulas as written, with probabilities, photo by photo and version by version. x: (q, n, K), z: (1, z, K)."""

    def ratio(signals: Signals, version: int, photo: int) -> float:
        value = 1.0
        for k in range(signals.target.shape[-1]):
            p_out = np.mean([math.exp(r[version, photo, k]) for r in signals.references])
            value *= math.exp(signals.target[version, photo, k]) / ((1 + a) / 2 * p_out + (1 - a) / 2)
        return value

    versions, photos = x.target.shape[:2]
    population = [ratio(z, 0, j) for j in range(z.target.shape[1])]
    scores = []
    for i in range(photos):
        ratios = [ratio(x, v, i) for v in range(versions)]
        dominated = [sum(r / other > gamma for r in ratios) > versions / 2 for other in population]
        scores.append(sum(dominated) / len(population))
    return scores


def signals(generator: torch.Generator, references: int, *shape: int) -> Signals:
    return Signals(-normal(generator, *shape).abs() / 2, -normal(generator, references, *shape).abs() / 2)


@pytest.mark.parametrize("versions", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("width", "references", "a", "gamma"), [(1, 1, 0.3, 1.2), (5, 3, 0.3, 2.0), (5, 8, 1.0, 1.5), (3, 2, 0.0, 1.0)])
def test_rmia_is_that_of_a_loop_over_the_formulas(versions: int, width: int, references: int, a: float, gamma: float) -> None:
    generator = draws(versions)
    x, z = signals(generator, references, versions, 12, width), signals(generator, references, 1, 25, width)
    ours = dominance(likelihood_ratios(x, a), likelihood_ratios(z, a)[0], gamma)
    theirs = rmia_by_loop(x, z, a, gamma)
    assert ours.tolist() == pytest.approx(theirs, abs=1e-12)
    assert 0 < sum(theirs) < 12
    # Two-sided: less the share of z that dominates x, by the same vote.
    ratios, others = likelihood_ratios(x, a), likelihood_ratios(z, a)[0]
    down = (((others.exp() / ratios.exp().unsqueeze(-1)) > gamma).sum(0) > versions / 2).double().mean(-1)
    torch.testing.assert_close(dominance(ratios, others, gamma, two_sided=True), torch.tensor(theirs).double() - down, rtol=0, atol=1e-12)


def test_equal_ratios_do_not_dominate() -> None:
    assert dominance(torch.zeros(1, 3), torch.zeros(4), 1.0).tolist() == [0, 0, 0]
    assert dominance(torch.zeros(1, 3), torch.zeros(4), 1.0, two_sided=True).tolist() == [0, 0, 0]


def test_rmia_of_one_version_is_that_of_photos_without_versions() -> None:
    generator = draws(0)
    x, z = signals(generator, 2, 1, 9, 3), signals(generator, 2, 1, 20, 3)
    flat = [Signals(s.target[0], s.references[:, 0]) for s in (x, z)]
    assert torch.equal(likelihood_ratios(x, 0.3), likelihood_ratios(flat[0], 0.3))


def face_signals(
    generator: torch.Generator, ids: torch.Tensor, width: int, gain: float = 1.0, versions: int = 1, references: int = 2
) -> Signals:
    """Logits of the true values: what is a photo's own, plus what is a model's own; the attacked model's losses times `gain`."""
    easy = 2 + normal(generator, int(ids.max()) + 1, width)[ids] + normal(generator, len(ids), width)

    def model() -> torch.Tensor:
        return easy + 0.5 * normal(generator, versions, len(ids), width)

    return Signals(
        gain * torch.nn.functional.logsigmoid(model()), torch.nn.functional.logsigmoid(torch.stack([model() for _ in range(references)]))
    )


@pytest.mark.parametrize("width", [1, 40])
@pytest.mark.parametrize("two_sided", [False, True])
def test_a_perfectly_unlearned_model_gives_rmia_no_hold(width: int, two_sided: bool) -> None:
    ids = two_groups(0)
    generator = draws(0)
    members, nonmembers = (face_signals(generator, i % 1000, width) for i in ids)
    population = face_signals(generator, torch.arange(500), width)
    found = rmia(members, nonmembers, population, ids, draws(0), two_sided=two_sided)
    interval = auc_interval(found.members, found.nonmembers, ids)
    assert interval.low < 0.5 < interval.high
    assert interval.value == pytest.approx(found.auc, abs=1e-12)
    assert abs(found.auc_either_way - 0.5) < 0.1


@pytest.mark.parametrize("width", [1, 40])
def test_three_times_the_loss_is_seen_by_rmia_and_by_the_loss_attack(width: int) -> None:
    ids = two_groups(0)
    generator = draws(0)
    nonmembers, population = face_signals(generator, ids[1] % 1000, width), face_signals(generator, torch.arange(500), width)
    found = {}
    for gain in (1 / 3, 3.0):
        members = face_signals(draws(5), ids[0], width, gain)
        found[gain] = rmia(members, nonmembers, population, ids, draws(0), two_sided=True)
        by_loss = loss_attack(-members.target[0].mean(1), -nonmembers.target[0].mean(1), ids, draws(0))
        assert min(found[gain].auc_either_way, by_loss.auc_either_way) > 0.65
        assert found[gain].sign == by_loss.sign == (1 if gain < 1 else -1)
    published = rmia(face_signals(draws(5), ids[0], width, 3.0), nonmembers, population, ids, draws(0))
    assert published.auc <= 0.5  # "lower is better": the original calls this a success,
    assert published.tpr[0.1] is not None  # while the other direction gives people away
    assert found[3.0].auc_either_way >= published.auc_either_way - 0.01
    assert auc_interval(-found[3.0].members, -found[3.0].nonmembers, ids).low > 0.6


def test_dividing_by_the_reference_twice_is_something_else() -> None:
    """The original code's error, kept to see that ours is not it."""
    generator = draws(0)
    x, z = signals(generator, 1, 1, 12, 3), signals(generator, 1, 1, 25, 3)

    def twice(s: Signals) -> torch.Tensor:
        return 2 * likelihood_ratios(s, 0.3) - s.target.sum(-1)

    assert dominance(twice(x), twice(z)[0], 1.5).tolist() != pytest.approx(rmia_by_loop(x, z, 0.3, 1.5))


def test_rmia_is_fast_and_its_size_in_z_costs_next_to_nothing() -> None:
    generator = draws(0)
    members, nonmembers = signals(generator, 8, 8, 400, 40), signals(generator, 8, 8, 1200, 40)
    population = signals(generator, 8, 3000, 40)
    ids = (torch.arange(400) // 40, torch.arange(1200) // 20)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = []
        for _ in range(2):
            start = time.process_time()
            rmia(members, nonmembers, population, ids, draws(0))
            seconds.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    print(f"RMIA: {min(seconds):.2f} s")
    assert min(seconds) < 2


def test_rmia_does_not_hide_what_is_not_known() -> None:
    ratios = torch.tensor([[0.0, math.nan, 1.0]])
    assert dominance(ratios, torch.zeros(3), 2.0).isnan().tolist() == [False, True, False]
    assert dominance(ratios, torch.tensor([0.0, math.nan]), 2.0).isnan().all()


def test_wrong_calls_of_rmia_say_so() -> None:
    generator = draws(0)
    fine = signals(generator, 1, 6, 2)
    ids = (torch.arange(6), torch.arange(6))
    with pytest.raises(UsageError, match="gamma is 1 or more, not 0.5"):
        rmia(fine, fine, fine, ids, generator, gamma=0.5)
    with pytest.raises(UsageError, match="a lies between 0 and 1, not at 2"):
        rmia(fine, fine, fine, ids, generator, a=2)
    with pytest.raises(UsageError, match="one version of each"):
        rmia(fine, fine, signals(generator, 1, 2, 6, 2), ids, generator)
    with pytest.raises(UsageError, match=r"\(6, 2\) and \(6, 2\)"):
        rmia(Signals(fine.target, fine.target), fine, fine, ids, generator)


# ---------------------------------------------------------------- U-LiRA


def models(generator: torch.Generator, count: int, mean: torch.Tensor, spread: torch.Tensor | float = 1.0) -> torch.Tensor:
    return mean + spread * normal(generator, count, *mean.shape)


@pytest.mark.parametrize("count", [12, 70])  # one variance for all photos, and a photo's own
def test_u_lira_on_gaussian_signals_reaches_the_auc_of_theory(count: int) -> None:
    """Half of the photos move up, half of them down: a loss attack sees nothing, an attacker who knows the photo everything."""
    distance, photos = 1.5, 800
    generator = draws(0)
    mean = 3 * normal(generator, photos, 1)
    moved = mean + distance * torch.where(torch.arange(photos) % 2 == 0, 1.0, -1.0).unsqueeze(1)
    found = u_lira(models(generator, count, moved), models(generator, count, mean))
    assert found.members.shape == found.nonmembers.shape == (count, photos)
    theory = stats.norm.cdf(distance / math.sqrt(2))
    assert found.auc == pytest.approx(theory, abs=0.035)
    assert found.auc < theory + 0.01
    assert found.auc_either_way == found.auc
    assert found.balanced_accuracy == pytest.approx(stats.norm.cdf(distance / 2), abs=0.025)
    assert found.smallest_fpr == 1 / photos
    assert found.tpr[0.1] == pytest.approx(stats.norm.cdf(distance + stats.norm.ppf(0.1)), abs=0.06)
    assert found.tpr[0.001] is None
    pooled = auc(models(generator, 1, moved).flatten(), models(generator, 1, mean).flatten())
    assert pooled == pytest.approx(0.5, abs=0.03)


def test_u_lira_uses_the_variance_of_each_photo_where_it_can() -> None:
    generator = draws(0)
    photos = 200
    spread = torch.where(torch.arange(photos) % 2 == 0, 0.2, 5.0).double().unsqueeze(1)
    mean = torch.zeros(photos, 1).double()
    sides = models(generator, 80, mean + 1, spread), models(generator, 80, mean, spread)
    few = u_lira(sides[0][:12], sides[1][:12])
    assert u_lira(*sides).auc > few.auc + 0.05


@pytest.mark.parametrize(("unlearned", "oracles"), [(1, 2), (1, 4), (2, 2), (2, 5), (3, 3), (5, 2), (12, 12)])
def test_u_lira_cannot_tell_models_that_unlearned_perfectly(unlearned: int, oracles: int) -> None:
    found = []
    for seed in range(60):
        generator = draws(seed)
        mean = 3 * normal(generator, 50, 3)
        found.append(u_lira(models(generator, unlearned, mean), models(generator, oracles, mean)).auc)
    assert np.mean(found) == pytest.approx(0.5, abs=3 * stats.sem(found))
    assert stats.sem(found) < 0.01


@pytest.mark.parametrize("unlearned", [1, 2, 6])
@pytest.mark.parametrize("shift", [-4.0, 4.0])
def test_u_lira_sees_both_directions_with_few_models(unlearned: int, shift: float) -> None:
    generator = draws(0)
    mean = 3 * normal(generator, 100, 2)
    found = u_lira(models(generator, unlearned, mean + shift), models(generator, 2, mean))
    assert found.auc > 0.9
    assert math.isnan(found.balanced_accuracy) if unlearned == 1 else found.balanced_accuracy > 0.85
    assert found.members.shape == (min(2, max(unlearned, 2)), 100)


def test_u_lira_is_that_of_a_plain_loop() -> None:
    generator = draws(0)
    unlearned, oracles = models(generator, 4, normal(generator, 6, 2) + 1, 2.0), models(generator, 3, normal(generator, 6, 2))
    found = u_lira(unlearned, oracles)
    for number in range(3):
        u = np.delete(unlearned.numpy(), number, 0)
        o = np.delete(oracles.numpy(), number, 0)
        for photo in range(6):
            for side, scores in ((unlearned, found.members), (oracles, found.nonmembers)):
                score = 0.0
                for k in range(2):
                    for shadow, sign in ((u, 1), (o, -1)):
                        variance = np.mean([np.var(shadow[:, i, k], ddof=1) for i in range(6)]) * (1 + 1 / len(shadow))
                        score += sign * stats.norm.logpdf(side[number, photo, k], shadow[:, photo, k].mean(), math.sqrt(variance))
                assert scores[number, photo].item() == pytest.approx(score, abs=1e-10)
    says = (found.members > 0).double().mean().item(), (found.nonmembers < 0).double().mean().item()
    assert says[0] != says[1]
    assert found.balanced_accuracy == pytest.approx(sum(says) / 2)
    assert found.auc == pytest.approx(np.mean([auc(m, n) for m, n in zip(found.members, found.nonmembers, strict=True)]))


def test_wrong_calls_of_u_lira_say_so() -> None:
    with pytest.raises(UsageError, match="two or more oracles"):
        u_lira(torch.zeros(2, 5, 1), torch.zeros(1, 5, 1))
    with pytest.raises(UsageError, match=r"given \(2, 5, 1\) and \(2, 4, 1\)"):
        u_lira(torch.zeros(2, 5, 1), torch.zeros(2, 4, 1))


# ---------------------------------------------------------------- the logistic attack


@pytest.mark.parametrize("ridge", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("distance", [0.0, 1.0, 50.0])  # 50: separable
def test_logistic_regression_is_that_of_scikit_learn(ridge: float, distance: float) -> None:
    truth = (torch.arange(200) < 45).double()
    features = normal(draws(0), 200, 2) + distance * truth.unsqueeze(1)
    weights, intercept = fit_logistic(features, truth, ridge)
    theirs = LogisticRegression(C=1 / ridge, class_weight="balanced", tol=1e-12, max_iter=10_000).fit(features.numpy(), truth.numpy())
    assert weights.tolist() == pytest.approx(theirs.coef_[0].tolist(), rel=1e-4, abs=1e-5)
    assert intercept.item() == pytest.approx(theirs.intercept_[0], rel=1e-4, abs=1e-5)


def test_the_logistic_attack_scores_people_that_it_did_not_see() -> None:
    """Features that name the person and nothing else: whoever saw another photo of hers knows her."""
    ids = two_groups(0, (10, 10), 6)
    people = normal(draws(0), 20, 30)
    members, nonmembers = people[ids[0]], people[10 + ids[1] - 1000]
    found = [logistic_attack(members, nonmembers, ids, draws(seed)).auc for seed in range(10)]
    assert abs(np.mean(found) - 0.5) < 0.25
    by_photo = logistic_attack(members, nonmembers, (torch.arange(60), torch.arange(60)), draws(0)).auc
    assert by_photo > 0.9


def test_without_a_difference_the_logistic_attack_has_no_lean() -> None:
    """Comparing raw outputs of different folds would lean below 0.5, and so hide a leak."""
    ids = two_groups(0, (5, 10), 6)
    found, accuracies = [], []
    for seed in range(150):
        generator = draws(seed)
        own = normal(generator, 15, 2)[torch.arange(15).repeat_interleave(6)]
        features = own + normal(generator, 90, 2)
        result = logistic_attack(features[:30], features[30:], ids, generator)
        found.append(result.auc)
        accuracies.append(result.balanced_accuracy)
    assert np.mean(found) == pytest.approx(0.5, abs=2.5 * stats.sem(found))
    assert np.mean(accuracies) == pytest.approx(0.5, abs=2.5 * stats.sem(accuracies))
    assert stats.sem(found) < 0.02


@pytest.mark.parametrize("shift", [-1.5, 1.5])
def test_the_logistic_attack_learns_its_direction(shift: float) -> None:
    ids = two_groups(0)
    members, nonmembers = normal(draws(0), len(ids[0]), 2), normal(draws(1), len(ids[1]), 2)
    members[:, 0] += shift
    found = logistic_attack(members, nonmembers, ids, draws(0))
    assert found.auc == found.auc_either_way
    assert found.auc == pytest.approx(stats.norm.cdf(1.5 / math.sqrt(2)), abs=0.05)
    assert found.balanced_accuracy == pytest.approx(stats.norm.cdf(0.75), abs=0.06)


def test_the_logistic_attack_scores_by_fold() -> None:
    """Two folds, one feature: the score is the share of the fold's strangers that lie below."""
    ids = (torch.arange(2).repeat_interleave(5), torch.arange(2).repeat_interleave(8))
    members, nonmembers = normal(draws(0), 10, 1) + 3, normal(draws(1), 16, 1)
    found = logistic_attack(members, nonmembers, ids, draws(0), folds=2)
    paired = []
    for first in (0, 1):
        n = nonmembers[ids[1] == first, 0]
        paired.append([(m > n).double().mean().item() for m in members[:, 0]])
    for position, score in enumerate(found.members.tolist()):
        assert min(abs(score - paired[0][position]), abs(score - paired[1][position])) < 1e-12
    assert sorted(found.nonmembers.tolist()) == pytest.approx(sorted([(i + 0.5) / 8 for i in range(8)] * 2))


def test_the_logistic_attack_does_not_hide_what_is_not_known() -> None:
    ids = two_groups(0)
    members, nonmembers = normal(draws(0), len(ids[0]), 2), normal(draws(1), len(ids[1]), 2)
    members[0, 0] = math.nan
    assert math.isnan(logistic_attack(members, nonmembers, ids, draws(0)).auc)


def test_the_logistic_attack_needs_two_people_on_either_side() -> None:
    with pytest.raises(UsageError, match="two forgotten people"):
        logistic_attack(torch.zeros(3, 2), torch.zeros(3, 2), (torch.zeros(3), torch.arange(3)), draws(0))


@pytest.mark.parametrize("kind", KINDS)
def test_from_logits_to_the_strongest_attack(kind: TaskKind) -> None:
    """All attacks on logits of both kinds of task, of a model that still knows the forgotten people well."""
    generator = draws(0)
    ids = two_groups(0)
    result, logits, labels = [], [], []
    for side, sharp in zip(ids, (4.0, 1.0), strict=True):
        truth = labels_of(kind, len(side), 6, generator)
        towards = 2 * truth - 1 if kind == "multi_label" else torch.nn.functional.one_hot(truth, 6).float()
        logits.append(sharp * towards + torch.randn(len(side), 6, generator=generator))
        labels.append(truth)
    loss = [losses(x, y, kind) for x, y in zip(logits, labels, strict=True)]
    result.append(loss_attack(loss[0], loss[1], ids, generator))
    features = [confidence_features(x, y, kind) for x, y in zip(logits, loss, strict=True)]
    result.append(logistic_attack(features[0], features[1], ids, generator))
    towards = [torch.zeros_like(x) for x in logits]
    both = [
        Signals(label_log_probabilities(x, y, kind), label_log_probabilities(o.unsqueeze(0), y, kind))
        for x, y, o in zip(logits, labels, towards, strict=True)
    ]
    population = face_signals(generator, torch.arange(300), 6 if kind == "multi_label" else 1, references=1)
    result.append(rmia(both[0], both[1], population, ids, generator))
    assert [attack.name for attack in result] == ["loss", "logistic", "rmia"]
    assert all(attack.auc > 0.8 for attack in result)
    assert strongest(result).auc_either_way == max(attack.auc_either_way for attack in result)
