"""Paired resamples of people against metrics of repeated photos, and the coverage of their intervals."""

from __future__ import annotations

import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oneshui_hf.errors import UsageError
from oneshui_hf.metrics.functional import accuracy, mean_average_precision
from oneshui_hf.metrics.intervals import draw_weights, percentile_interval
from oneshui_hf.metrics.paired_bootstrap import Resamples, reflect_resamples, tow_interval


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(seed: int, count: int, people: int, labels: int, levels: int, share: float = 0.3) -> tuple[torch.Tensor, ...]:
    """Identities (not sorted, not from 0), scores with ties, labels."""
    generator = rng(seed)
    identities = 7 + 3 * torch.randint(people, (count,), generator=generator)
    scores = torch.randint(levels, (count, labels), generator=generator).float() - levels / 2
    return identities, scores, (torch.rand(count, labels, generator=generator) < share).float()


def repeated(resamples: Resamples, number: int) -> torch.Tensor:
    """Positions of the photos of one resample, each as often as its person is drawn."""
    times = resamples.weights[number].long()[resamples.person_index]
    return torch.arange(len(times)).repeat_interleave(times)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 12), st.integers(1, 5), st.sampled_from([1, 2, 5, 10**6]), st.floats(0, 1))
def test_map_matches_that_of_repeated_photos(seed: int, count: int, people: int, labels: int, levels: int, share: float) -> None:
    identities, scores, truth = photos(seed, count, people, labels, levels, share)
    resamples = Resamples.draw(identities, 8, rng(seed))
    found = resamples.average_precision(scores, truth)
    assert (found.dtype, found.shape) == (torch.float64, (8,))
    for number, value in enumerate(found.tolist()):
        rows = repeated(resamples, number)
        assert value == pytest.approx(mean_average_precision(scores[rows], truth[rows])[0], abs=1e-9, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 12))
def test_mean_matches_that_of_repeated_photos(seed: int, count: int, people: int) -> None:
    identities, scores, _ = photos(seed, count, people, 3, 10**6)
    classes = torch.randint(3, (count,), generator=rng(seed))
    hits = 100 * (scores.argmax(dim=1) == classes).double()
    resamples = Resamples.draw(identities, 8, rng(seed))
    means, accuracies = resamples.mean(scores[:, 0]), resamples.mean(hits)
    assert means.dtype == torch.float64
    for number in range(8):
        rows = repeated(resamples, number)
        assert means[number].item() == pytest.approx(scores[rows, 0].double().mean().item(), rel=1e-9, abs=1e-6)
        assert accuracies[number].item() == pytest.approx(accuracy(scores[rows], classes[rows]), abs=1e-9)


def test_chunk_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    identities, scores, truth = photos(0, 300, 20, 4, 50)
    resamples = Resamples.draw(identities, 100, rng(1))
    whole = resamples.average_precision(scores, truth)
    monkeypatch.setattr("oneshui_hf.metrics.paired_bootstrap._CELLS", 2000)
    assert torch.equal(resamples.average_precision(scores, truth), whole)
    monkeypatch.setattr("oneshui_hf.metrics.intervals._CELLS", 300)
    assert torch.equal(Resamples.draw(identities, 100, rng(1)).weights, resamples.weights)


def test_people_are_drawn_as_for_other_intervals() -> None:
    identities = torch.tensor([50, 9, 9, 50, 3])
    resamples = Resamples.draw(identities, 200, rng(0))
    assert resamples.person_index.tolist() == [2, 1, 1, 2, 0]
    assert resamples.people == 3
    assert resamples.weights.dtype == torch.float32
    assert torch.equal(resamples.weights.double(), draw_weights(3, 200, rng(0)))
    assert (resamples.weights.sum(1) == 3).all()
    assert not torch.equal(resamples.weights, Resamples.draw(identities, 200, rng(1)).weights)


def test_label_without_a_positive_is_left_out_of_that_resample_only() -> None:
    """Only the first person has the second label, which is ranked perfectly; the first label is ranked incorrectly."""
    resamples = Resamples(torch.tensor([[1.0, 1.0], [0.0, 2.0]]), torch.tensor([0, 1, 1]))
    scores = torch.tensor([[0.0, 9.0], [0.0, 1.0], [2.0, 2.0]])
    truth = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    # First label: photos 0 and 1 tie behind photo 2, so 2 of 3; for the second person alone 1 of 2.
    assert resamples.average_precision(scores, truth).tolist() == pytest.approx([100 * (2 / 3 + 1) / 2, 50.0])


def test_label_without_a_negative_is_left_out_of_that_resample_only() -> None:
    """The second label is positive on both photos of the second person; both labels of the first resample vary."""
    resamples = Resamples(torch.tensor([[1.0, 1.0], [0.0, 2.0], [2.0, 0.0]]), torch.tensor([0, 1, 1]))
    scores = torch.tensor([[0.0, 9.0], [0.0, 1.0], [2.0, 2.0]])
    truth = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    found = resamples.average_precision(scores, truth).tolist()
    # Second label: its positives are at ranks 2 and 3 of 3, so (1/2 + 2/3) / 2; for the second person alone it is constant.
    assert found[:2] == pytest.approx([100 * (2 / 3 + (1 / 2 + 2 / 3) / 2) / 2, 50.0])
    assert math.isnan(found[2])  # one person with one photo: no label varies


def test_unknown_scores_are_nan() -> None:
    identities, scores, truth = photos(0, 40, 5, 3, 10**6)
    resamples = Resamples.draw(identities, 10, rng(0))
    assert resamples.average_precision(scores, torch.zeros_like(truth)).isnan().all()
    assert resamples.average_precision(scores, torch.ones_like(truth)).isnan().all()
    scores[7, 1] = math.nan
    assert resamples.average_precision(scores, truth).isnan().all()
    assert resamples.mean(scores[:, 1]).isnan().all()
    none = Resamples.draw(identities[:0], 10, rng(0))
    assert (none.people, len(none.weights)) == (0, 10)
    assert none.average_precision(scores[:0], truth[:0]).isnan().all()
    assert none.mean(scores[:0, 0]).isnan().all()


def test_invalid_arguments_are_rejected() -> None:
    identities, scores, truth = photos(0, 40, 5, 3, 10**6)
    with pytest.raises(UsageError, match="at least one repetition, not 0"):
        Resamples.draw(identities, 0, rng(0))
    resamples = Resamples.draw(identities, 10, rng(0))
    for call in (lambda: resamples.mean(scores[:39, 0]), lambda: resamples.average_precision(scores, truth[:39])):
        with pytest.raises(UsageError, match="of 40 photos, but 39 values were given"):
            call()


def test_global_rng_is_unchanged() -> None:
    state = torch.get_rng_state()
    Resamples.draw(torch.arange(5), 10, rng(0))
    assert torch.equal(state, torch.get_rng_state())


def test_a_thousand_resamples_take_well_under_a_second() -> None:
    identities, scores, truth = photos(0, 700, 30, 40, 10**6)
    resamples = Resamples.draw(identities, 1000, rng(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = []
        for _ in range(3):
            start = time.process_time()
            resamples.average_precision(scores, truth)
            seconds.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    print(f"mAP of 1000 resamples of 700 photos: {min(seconds):.2f} s")
    assert min(seconds) < 1


# ---------------------------------------------------------------- coverage of the interval of a difference

LABELS = 3


def two_models(people: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Identities, labels and logits of two models: some people are hard for both models, some for one of them."""
    identities = torch.arange(people).repeat_interleave(torch.randint(4, 13, (people,), generator=generator))
    count = len(identities)

    def normal(rows: int) -> torch.Tensor:
        return torch.randn(rows, LABELS, generator=generator)

    truth = (torch.linspace(-1, 0.3, LABELS) + normal(people)[identities] + normal(count) > 0).float()
    shared = 0.8 * normal(people)[identities] + normal(count)
    first, second = (skill * (2 * truth - 1) + shared + 0.5 * normal(people)[identities] + 0.5 * normal(count) for skill in (1.0, 0.8))
    return identities, truth, first, second


@pytest.fixture(scope="module")
def true_difference() -> float:
    _, truth, first, second = two_models(60_000, rng(1000))
    return mean_average_precision(first, truth)[0] - mean_average_precision(second, truth)[0]


@pytest.mark.parametrize("people", [10, 20, 60])
def test_interval_of_a_difference_of_two_maps_has_its_nominal_coverage(people: int, true_difference: float) -> None:
    generator = rng(people)
    covered, paired, unpaired = [], [], []
    for _ in range(160):
        identities, truth, first, second = two_models(people, generator)
        resamples = Resamples.draw(identities, 200, generator)
        one, other = (resamples.average_precision(logits, truth) for logits in (first, second))
        value = mean_average_precision(first, truth)[0] - mean_average_precision(second, truth)[0]
        found = percentile_interval(value, one - other, resamples.people)
        covered.append(found.low <= true_difference <= found.high)
        paired.append((one - other).std().item())
        unpaired.append(math.hypot(one.std().item(), other.std().item()))
    coverage, gain = 100 * sum(covered) / len(covered), sum(unpaired) / sum(paired)
    print(f"{people} people: the interval covers the true value in {coverage:.1f} %; without pairing it would be {gain:.1f} times as wide")
    assert 90 <= coverage <= 99
    assert gain > 1.5


# ---------------------------------------------------------------- ToW

GROUPS = ((100, 6.0), (20, 12.0), (40, 8.0))  # people of retain, forget and test, and their standard deviation


def tow_of(differences: torch.Tensor) -> torch.Tensor:
    return 100 * (1 - differences.abs() / 100).prod(0)


@pytest.mark.parametrize("true", [(0.0, 0.0, 0.0), (0.3, 1.0, 0.5), (3.0, 15.0, 3.0)])
def test_interval_of_tow_has_its_nominal_coverage_near_the_oracle_and_far_from_it(true: tuple[float, ...]) -> None:
    """Scores are means. Percentiles alone never cover 100, the ToW of a model as good as the oracle."""
    generator = rng(0)
    true_value = tow_of(torch.tensor(true)).item()
    covered, by_percentiles = 0, 0
    for _ in range(120):
        differences = []
        for difference, (people, spread) in zip(true, GROUPS, strict=True):
            values = difference + spread * torch.randn(people, generator=generator)
            resamples = Resamples.draw(torch.arange(people), 250, generator)
            differences.append((values.mean().item(), resamples.mean(values), people))
        value = tow_of(torch.tensor([d for d, *_ in differences])).item()
        found = tow_interval(value, differences)
        assert found.low <= value <= found.high <= 100
        covered += found.low <= true_value <= found.high + 1e-9
        plain = percentile_interval(value, tow_of(torch.stack([f for _, f, _ in differences])), 20)
        by_percentiles += plain.low <= true_value <= plain.high
    print(f"ToW {true_value:.1f}: the interval covers it in {covered / 1.2:.1f} %, the percentiles in {by_percentiles / 1.2:.1f} %")
    assert covered >= 0.9 * 120
    if true_value == 100:
        assert by_percentiles == 0


def test_tow_of_the_oracle_has_an_interval_of_width_zero() -> None:
    found = tow_interval(100.0, [(0.0, torch.zeros(50), 10)] * 3)
    assert (found.value, found.low, found.high, found.units) == (100.0, 100.0, 100.0, 10)


def test_interval_of_tow_needs_two_people_in_each_set() -> None:
    found = tow_interval(95.0, [(5.0, torch.full((50,), 5.0), 1), (0.0, torch.zeros(50), 10)])
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    found = tow_interval(math.nan, [(math.nan, torch.full((50,), math.nan), 5)])
    assert math.isnan(found.low)


ATTRIBUTES, EACH = 20, 10  # of the simulated people


def faces_of(people: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw people with individual label rates, their photos, and logits of a moderately good model."""
    rates = torch.linspace(-2.5, 1, ATTRIBUTES) + 1.5 * torch.randn(people, 1, ATTRIBUTES, generator=rng)
    truth = (torch.rand(people, EACH, ATTRIBUTES, generator=rng) < rates.sigmoid()).float()
    noise = 0.8 * torch.randn(people, 1, ATTRIBUTES, generator=rng) + torch.randn(people, EACH, ATTRIBUTES, generator=rng)
    logits = 1.2 * truth + noise
    return logits.flatten(0, 1), truth.flatten(0, 1), torch.arange(people).repeat_interleave(EACH)


def test_reflected_resamples_cover_the_map_of_all_people_and_plain_resamples_do_not() -> None:
    rng = torch.Generator().manual_seed(3)
    logits, truth, _ = faces_of(3000, rng)
    of_all, covered = mean_average_precision(logits, truth)[0], {"plain": 0, "reflected": 0}
    for _ in range(120):
        logits, truth, people = faces_of(8, rng)
        value = mean_average_precision(logits, truth)[0]
        found = Resamples.draw(people, 200, rng).average_precision(logits, truth)
        for name, resampled in (("plain", found), ("reflected", reflect_resamples(value, found))):
            interval = percentile_interval(value, resampled, 8)
            covered[name] += interval.low <= of_all <= interval.high
    assert covered["reflected"] >= 0.82 * 120
    assert covered["plain"] < 0.75 * 120
