"""Ranks of forgotten people against enumeration, and known answers: chance without signal, rank 1 for a planted leak."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.stats import binomtest

from oneshui_hf.errors import UsageError
from oneshui_hf.metrics.owner_identification import (
    batch_share,
    expected_ranks,
    identify_owners,
    person_means,
    person_ranks,
    share_interval,
)
from support.attack_data import normal, rng


def rank_by_hand(score: float, others: list[float]) -> float:
    return 1 + sum(1.0 if other > score else 0.5 if other == score else 0.0 for other in others)


def tied_scores(people: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return small whole scores, so that many are equal, of photos of people in random order with 1 to 4 photos each."""
    generator = rng(seed)
    sizes = torch.randint(1, 5, (people,), generator=generator)
    identities = 7 * torch.arange(people).repeat_interleave(sizes) + 100 * seed
    identities = identities[torch.randperm(len(identities), generator=generator)]
    return torch.randint(0, 4, (len(identities),), generator=generator).double(), identities


def test_person_means_and_ranks_match_a_loop() -> None:
    scores, identities = tied_scores(9, 1)
    others, other_ids = tied_scores(12, 2)
    means = [scores[identities == person].mean().item() for person in identities.unique()]
    other_means = [others[other_ids == person].mean().item() for person in other_ids.unique()]
    assert person_means(scores, identities).tolist() == pytest.approx(means, abs=1e-15)
    ranks = person_ranks(torch.tensor(means), torch.tensor(other_means))
    assert ranks.tolist() == [rank_by_hand(mean, other_means) for mean in torch.tensor(means).tolist()]


def test_expected_rank_of_one_photo_each_matches_the_enumeration_of_all_draws() -> None:
    photos, _ = tied_scores(3, 3)
    others, other_ids = tied_scores(5, 4)
    by_person = [others[other_ids == person].tolist() for person in other_ids.unique()]
    assert max(map(len, by_person)) > 1
    for photo, found in zip(photos.tolist(), expected_ranks(photos, others, other_ids).tolist(), strict=True):
        draws = list(itertools.product(*by_person))
        assert found == pytest.approx(sum(rank_by_hand(photo, list(draw)) for draw in draws) / len(draws), abs=1e-12)


def test_share_of_the_top_k_matches_the_enumeration_of_all_orders_of_ties() -> None:
    for seed in range(20):
        generator = rng(seed)
        people, others = (torch.randint(0, 3, (count,), generator=generator).double() for count in (3, 4))
        candidates = [(score, True) for score in people.tolist()] + [(score, False) for score in others.tolist()]
        shares = []
        for order in itertools.permutations(candidates):
            top = sorted(order, key=lambda candidate: -candidate[0])[:3]  # a stable sort: ties are in the order of the permutation
            shares.append(sum(is_forgotten for _, is_forgotten in top) / 3)
        assert batch_share(people, others) == pytest.approx(sum(shares) / len(shares), abs=1e-12)


def test_share_interval_is_that_of_clopper_and_pearson() -> None:
    for successes, count in ((0, 6), (3, 7), (6, 6)):
        found = share_interval(torch.cat([torch.ones(successes), torch.zeros(count - successes)]).double())
        expected = binomtest(successes, count).proportion_ci(0.95, method="exact")
        assert [found.low, found.high] == pytest.approx([expected.low, expected.high])
        assert found.value == successes / count


def test_scores_independent_of_the_person_give_chance_within_the_interval() -> None:
    people, photos = 60, 6
    identities = torch.arange(people).repeat_interleave(photos)
    forgotten = torch.arange(20)
    covered = {"rank": 0, "photo_rank": 0, "rank_1_share": 0}
    for seed in range(40):
        scores = normal(rng(seed), people * photos) + normal(rng(1000 + seed), people)[identities]
        found = identify_owners(scores, identities, forgotten, rng(seed), repetitions=200)
        assert (found.candidates, found.people, found.support_rank) == (41, 20, None)
        for name, chance in (("rank", 21), ("photo_rank", 21), ("rank_1_share", 1 / 41)):
            interval = getattr(found, name)
            covered[name] += interval.low <= chance <= interval.high
    assert all(count >= 32 for count in covered.values()), covered  # of 38 expected; the others in common widen the spread


def test_a_planted_leak_is_rank_1_and_noise_in_single_photos_is_not() -> None:
    people, photos = 30, 8
    identities = torch.arange(people).repeat_interleave(photos)
    forgotten = torch.tensor([3, 11, 12, 25])
    scores = normal(rng(0), people * photos) + 4 * torch.isin(identities, forgotten)
    support = 4 + normal(rng(1), 4), forgotten
    found = identify_owners(scores, identities, forgotten, rng(2), support, repetitions=200)
    assert found.rank.value == 1
    assert found.rank_1_share.value == 1
    assert 0.35 < found.rank_1_share.low < 0.45  # four of four show little more than 0.4
    assert found.batch_share == 1
    assert 1 < found.photo_rank.value < 2
    assert found.support_rank is not None
    assert found.support_rank.value < 2
    inverted = identify_owners(-scores, identities, forgotten, rng(2), repetitions=200)
    assert inverted.rank.value == inverted.candidates == 27
    assert inverted.batch_share == 0


def test_equal_scores_are_the_middle() -> None:
    identities = torch.arange(10).repeat_interleave(3)
    found = identify_owners(torch.zeros(30), identities, torch.tensor([0, 1]), rng(0), repetitions=100)
    assert found.rank.value == pytest.approx(5)
    assert found.photo_rank.value == pytest.approx(5)
    assert found.rank_1_share.value == pytest.approx(1 / 9)
    assert found.batch_share == pytest.approx(0.2)


def test_nan_is_not_hidden_and_wrong_input_is_refused() -> None:
    identities = torch.arange(10).repeat_interleave(3)
    scores = torch.zeros(30)
    scores[29] = math.nan
    found = identify_owners(scores, identities, torch.tensor([0, 1, 2]), rng(0), repetitions=100)
    assert all(math.isnan(value) for value in (found.rank.value, found.photo_rank.value, found.rank_1_share.value, found.batch_share))
    with pytest.raises(UsageError, match="forgotten person"):
        identify_owners(scores, identities, torch.tensor([77]), rng(0))
    with pytest.raises(UsageError, match="each scored photo"):
        identify_owners(scores, identities[:5], torch.tensor([0]), rng(0))
