"""RMIA against a plain loop over its formulas, and on models with a known answer."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from oneshui_hf.errors import UsageError
from oneshui_hf.metrics.attack_signals import Signals
from oneshui_hf.metrics.attacks import loss_attack, rmia
from oneshui_hf.metrics.attacks.rmia import dominance, log_likelihood_ratios
from oneshui_hf.metrics.intervals import auc_interval
from support.attack_data import face_signals, normal, rng, two_groups


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
def test_rmia_matches_a_loop_over_the_formulas(versions: int, width: int, references: int, a: float, gamma: float) -> None:
    generator = rng(versions)
    x, z = signals(generator, references, versions, 12, width), signals(generator, references, 1, 25, width)
    ours = dominance(log_likelihood_ratios(x, a), log_likelihood_ratios(z, a)[0], gamma)
    theirs = rmia_by_loop(x, z, a, gamma)
    assert ours.tolist() == pytest.approx(theirs, abs=1e-12)
    assert 0 < sum(theirs) < 12
    # Two-sided: minus the share of z that dominates x, by the same vote.
    ratios, others = log_likelihood_ratios(x, a), log_likelihood_ratios(z, a)[0]
    down = (((others.exp() / ratios.exp().unsqueeze(-1)) > gamma).sum(0) > versions / 2).double().mean(-1)
    torch.testing.assert_close(dominance(ratios, others, gamma, two_sided=True), torch.tensor(theirs).double() - down, rtol=0, atol=1e-12)


def test_equal_ratios_do_not_dominate() -> None:
    assert dominance(torch.zeros(1, 3), torch.zeros(4), 1.0).tolist() == [0, 0, 0]
    assert dominance(torch.zeros(1, 3), torch.zeros(4), 1.0, two_sided=True).tolist() == [0, 0, 0]


def test_rmia_of_one_version_matches_photos_without_versions() -> None:
    generator = rng(0)
    x, z = signals(generator, 2, 1, 9, 3), signals(generator, 2, 1, 20, 3)
    flat = [Signals(s.target[0], s.references[:, 0]) for s in (x, z)]
    assert torch.equal(log_likelihood_ratios(x, 0.3), log_likelihood_ratios(flat[0], 0.3))


@pytest.mark.parametrize("width", [1, 40])
@pytest.mark.parametrize("two_sided", [False, True])
def test_rmia_fails_on_a_perfectly_unlearned_model(width: int, two_sided: bool) -> None:
    ids = two_groups()
    generator = rng(0)
    members, nonmembers = (face_signals(generator, i % 1000, width) for i in ids)
    population = face_signals(generator, torch.arange(500), width)
    found = rmia(members, nonmembers, population, ids, rng(0), two_sided=two_sided)
    interval = auc_interval(found.members, found.nonmembers, ids)
    assert interval.low < 0.5 < interval.high
    assert interval.value == pytest.approx(found.auc, abs=1e-12)
    assert abs(found.auc_best_direction - 0.5) < 0.1


@pytest.mark.parametrize("width", [1, 40])
def test_three_times_the_loss_is_detected_by_rmia_and_by_the_loss_attack(width: int) -> None:
    ids = two_groups()
    generator = rng(0)
    nonmembers, population = face_signals(generator, ids[1] % 1000, width), face_signals(generator, torch.arange(500), width)
    found = {}
    for gain in (1 / 3, 3.0):
        members = face_signals(rng(5), ids[0], width, gain)
        found[gain] = rmia(members, nonmembers, population, ids, rng(0), two_sided=True)
        by_loss = loss_attack(-members.target[0].mean(1), -nonmembers.target[0].mean(1), ids, rng(0))
        assert min(found[gain].auc_best_direction, by_loss.auc_best_direction) > 0.65
        assert found[gain].sign == by_loss.sign == (1 if gain < 1 else -1)
    published = rmia(face_signals(rng(5), ids[0], width, 3.0), nonmembers, population, ids, rng(0))
    assert published.auc <= 0.5  # a success if lower is considered better,
    assert published.tpr[0.1] is not None  # while the opposite direction reveals members
    assert found[3.0].auc_best_direction >= published.auc_best_direction - 0.01
    assert auc_interval(-found[3.0].members, -found[3.0].nonmembers, ids).low > 0.6


def test_dividing_by_the_reference_twice_gives_other_scores() -> None:
    """Dividing twice is an error of the original code."""
    generator = rng(0)
    x, z = signals(generator, 1, 1, 12, 3), signals(generator, 1, 1, 25, 3)

    def twice(s: Signals) -> torch.Tensor:
        return 2 * log_likelihood_ratios(s, 0.3) - s.target.sum(-1)

    assert dominance(twice(x), twice(z)[0], 1.5).tolist() != pytest.approx(rmia_by_loop(x, z, 0.3, 1.5))


def test_rmia_is_fast_for_a_large_population() -> None:
    generator = rng(0)
    members, nonmembers = signals(generator, 8, 8, 400, 40), signals(generator, 8, 8, 1200, 40)
    population = signals(generator, 8, 3000, 40)
    ids = (torch.arange(400) // 40, torch.arange(1200) // 20)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = []
        for _ in range(2):
            start = time.process_time()
            rmia(members, nonmembers, population, ids, rng(0))
            seconds.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    print(f"RMIA: {min(seconds):.2f} s")
    assert min(seconds) < 2


def test_rmia_scores_nan_for_nan() -> None:
    ratios = torch.tensor([[0.0, math.nan, 1.0]])
    assert dominance(ratios, torch.zeros(3), 2.0).isnan().tolist() == [False, True, False]
    assert dominance(ratios, torch.tensor([0.0, math.nan]), 2.0).isnan().all()


def test_invalid_arguments_of_rmia_are_rejected() -> None:
    generator = rng(0)
    valid = signals(generator, 1, 6, 2)
    ids = (torch.arange(6), torch.arange(6))
    with pytest.raises(UsageError, match="gamma must be 1 or more, not 0.5"):
        rmia(valid, valid, valid, ids, generator, gamma=0.5)
    with pytest.raises(UsageError, match="a must lie between 0 and 1, not 2"):
        rmia(valid, valid, valid, ids, generator, a=2)
    with pytest.raises(UsageError, match="exactly one version of each photo"):
        rmia(valid, valid, signals(generator, 1, 2, 6, 2), ids, generator)
    with pytest.raises(UsageError, match=r"\(6, 2\) and \(6, 2\)"):
        rmia(Signals(valid.target, valid.target), valid, valid, ids, generator)
