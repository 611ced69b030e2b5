"""Identification of simulated people: against slow loops, against scipy, and the coverage of the confidence bound."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.recognition.matching import Calibration, ErrorRate, Match, calibrate, identify, make_template, upper_confidence_bound

SIZE = 16
Templates = dict[str, torch.Tensor]


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def random_embeddings(count: int, each: int, generator: torch.Generator, spread: float = 0.8) -> torch.Tensor:
    """Unit vectors around each person's mean direction, (count, each, SIZE), as from a von Mises-Fisher distribution."""
    mean = unit(torch.randn(count, 1, SIZE, generator=generator))
    return unit(mean + spread * torch.randn(count, each, SIZE, generator=generator) / math.sqrt(SIZE))


def enroll(embeddings: torch.Tensor) -> Templates:
    return {f"p{i:03d}": template for i, own in enumerate(embeddings) if (template := make_template(own)) is not None}


def unseen_identities(count: int, each: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return random_embeddings(count, each, draws(seed)).flatten(0, 1), torch.arange(count).repeat_interleave(each)


def naive_match(templates: Templates, photo: torch.Tensor) -> tuple[str, float, float]:
    """Return the most similar person, the similarity and the runner-up margin, name by name in numpy."""
    found = []
    for name, template in templates.items():
        a, b = template.numpy().astype(np.float64), photo.numpy().astype(np.float64)
        found.append((float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), name))
    found.sort(reverse=True)
    return found[0][1], found[0][0], found[0][0] - found[1][0] if len(found) > 1 else math.inf


def calibration_with(threshold: float = 0.5, margin_threshold: float = 0.0) -> Calibration:
    return Calibration(threshold, margin_threshold, 3, 0.01, ErrorRate(0.0, 0.1, 20, 40))


# Templates


def test_template_is_the_normalised_mean_embedding() -> None:
    own = random_embeddings(1, 7, draws())[0]
    found = make_template(own)
    assert found is not None
    mean = own.double().numpy().mean(axis=0)
    assert found.dtype == torch.float16
    assert found.shape == (SIZE,)
    np.testing.assert_allclose(found.double().numpy(), mean / np.linalg.norm(mean), atol=5e-4)


def test_template_takes_at_most_a_kilobyte() -> None:
    found = make_template(unit(torch.randn(5, 384, generator=draws())))
    assert found is not None
    assert found.numel() * found.element_size() <= 1024


def test_photos_without_a_face_are_ignored_in_a_template() -> None:
    own = random_embeddings(1, 4, draws())[0]
    spoilt = torch.cat([own[:2], torch.full((1, SIZE), math.nan), own[2:]])
    first, second = make_template(own), make_template(spoilt)
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "embeddings",
    [torch.zeros(0, SIZE), torch.full((3, SIZE), math.nan), torch.stack([torch.eye(SIZE)[0], -torch.eye(SIZE)[0]])],
    ids=["no photo", "no face", "opposites"],
)
def test_no_template_without_a_usable_embedding(embeddings: torch.Tensor) -> None:
    assert make_template(embeddings) is None


# The confidence bound


def test_bound_of_whole_counts_is_clopper_pearson_at_a_smaller_error() -> None:
    """Bentkus: e times the binomial tail, so the level is 0.05 / e."""
    for people in (1, 5, 60, 299):
        for count in (0, 1, 4):
            if count < people:
                expected = stats.beta.ppf(1 - 0.05 / math.e, count + 1, people - count)
                assert upper_confidence_bound(count / people, people) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("mean", "people", "bound"),
    [
        (0.0, 1, 1 - 0.05 / math.e),  # closed forms: the tail of no event is (1 - u) ** n
        (0.0, 60, 1 - (0.05 / math.e) ** (1 / 60)),
        (0.01, 60, 0.0815261405149),  # from the sum of binomial terms in mpmath, 50 digits
        (0.25, 12, 0.589675081509),
        (0.1, 299, 0.142426470311),
    ],
)
def test_bound_has_known_values(mean: float, people: int, bound: float) -> None:
    assert upper_confidence_bound(mean, people) == pytest.approx(bound, abs=1e-9)


def test_bound_between_whole_counts_lies_between() -> None:
    ends = [upper_confidence_bound(count / 50, 50) for count in (0, 0.3, 0.6, 1)]
    assert ends == sorted(ends)
    assert ends[0] < ends[1] < ends[3]
    error = [stats.binom.logcdf(count, 50, ends[1]) for count in (0, 1)]
    assert 0.7 * error[0] + 0.3 * error[1] + 1 == pytest.approx(math.log(0.05), abs=1e-6)


@pytest.mark.parametrize(("mean", "people"), [(1.0, 10), (0.0, 0)])
def test_bound_is_one_without_information(mean: float, people: int) -> None:
    assert upper_confidence_bound(mean, people) == 1


@given(st.floats(0, 1), st.integers(1, 120))
@settings(max_examples=40, deadline=None)
def test_bound_is_a_share_above_the_mean(mean: float, people: int) -> None:
    assert mean <= upper_confidence_bound(mean, people) <= 1


@pytest.mark.parametrize("each", [1, 12])
def test_bound_covers_the_threshold_chosen_on_the_same_people(each: int) -> None:
    """The true rate comes from many more unseen identities. A bound that treats photos as independent is far too low."""
    generator, runs, rate, count = draws(1), 100, 0.05, 30
    held = naive_held = 0
    templates = enroll(random_embeddings(20, 6, generator))
    gallery = unit(torch.stack(list(templates.values())).double())

    def best(of: torch.Tensor) -> torch.Tensor:
        return (of.double() @ gallery.T).amax(-1)

    many = best(random_embeddings(10_000, 1, generator, spread=0.4)).flatten()
    for _ in range(runs):
        taken = random_embeddings(count, each, generator, spread=0.4)
        found = calibrate(
            templates, taken.flatten(0, 1), torch.arange(count).repeat_interleave(each), target_rate=rate, margin_threshold=0.0
        )
        truth = (many >= found.threshold).double().mean().item()
        held += truth <= found.false_match_rate.upper
        naive_held += truth <= stats.beta.ppf(0.95, rate * count * each + 1, (1 - rate) * count * each)
    print(f"{each} photos a person: the bound covers the true rate in {held / runs:.1%}, the one over photos in {naive_held / runs:.1%}")
    assert held / runs >= 0.95
    if each > 1:
        assert naive_held / runs < 0.9


# Calibration


def lowest_threshold(templates: Templates, rows: torch.Tensor, identities: torch.Tensor, rate: float) -> float:
    """Return the lowest threshold by trying each score, and the number just above it."""
    scores = np.array([naive_match(templates, row)[1] for row in rows])
    owners = identities.numpy()

    def share(threshold: float) -> float:
        return float(np.mean([(scores[owners == person] >= threshold).mean() for person in np.unique(owners)]))

    tried = sorted({*scores, *(np.nextafter(s, 2) for s in scores)})
    return next(t for t in tried if share(t) <= rate + 1e-12)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_threshold_is_the_lowest_with_the_target_rate(rate: float) -> None:
    templates = enroll(random_embeddings(8, 4, draws(1)))
    rows, identities = unseen_identities(15, 4, seed=2)
    kept = torch.rand(len(rows), generator=draws(3)) < 0.8  # people with 2, 3 and 4 photos
    rows, identities = rows[kept], identities[kept] * 7 + 100
    found = calibrate(templates, rows, identities, target_rate=rate, margin_threshold=0.0)
    assert found.threshold == pytest.approx(lowest_threshold(templates, rows, identities, rate), abs=2e-9)
    accepted = np.array([identify(row, templates, found).accepted for row in rows])
    shares = [accepted[identities.numpy() == person].mean() for person in identities.unique().numpy()]
    assert found.false_match_rate.value == pytest.approx(np.mean(shares))
    assert 0 < found.false_match_rate.value <= rate or rate == 0.01
    assert (found.false_match_rate.people, found.false_match_rate.photos) == (len(shares), len(rows))
    assert found.false_match_rate.upper == upper_confidence_bound(rate, len(shares))


def test_each_unseen_identity_has_the_same_weight() -> None:
    templates = {"a": torch.eye(SIZE)[0]}
    angle = torch.tensor([0.9, 0.8] + [0.1] * 98)  # the first person's two photos are the most similar; the other person has 98
    rows = unit(torch.stack([angle, (1 - angle**2).sqrt(), *torch.zeros(SIZE - 2, 100)], dim=1))
    identities = torch.tensor([0, 0] + [1] * 98)
    assert calibrate(templates, rows, identities, target_rate=0.1).threshold == pytest.approx(0.9, abs=1e-6)  # one photo is a quarter
    assert calibrate(templates, rows, identities, target_rate=0.3).threshold == pytest.approx(0.8, abs=1e-6)


def test_default_margin_threshold_is_the_median_margin_of_unseen_identities() -> None:
    templates = enroll(random_embeddings(8, 4, draws(1)))
    rows, identities = unseen_identities(15, 3, seed=2)
    found, without = (calibrate(templates, rows, identities, target_rate=0.3, margin_threshold=m) for m in (None, 0.0))
    assert found.margin_threshold == pytest.approx(np.median([naive_match(templates, row)[2] for row in rows]), abs=2e-9)
    assert found.threshold == without.threshold
    assert found.false_match_rate.value < without.false_match_rate.value
    assert found.false_match_rate.upper == without.false_match_rate.upper


def test_rates_of_enrolled_people_are_those_of_their_held_out_photos() -> None:
    taken = random_embeddings(12, 8, draws(1), spread=1.6)
    templates = enroll(taken[:, :5])
    held_out = {name: own[5:] for name, own in zip(templates, taken, strict=True)}
    del held_out["p003"]
    held_out["p004"] = torch.cat([held_out["p004"][:1], torch.full((1, SIZE), math.nan)])
    held_out["p005"] = torch.full((2, SIZE), math.nan)
    held_out["nobody"] = taken[0]
    rows, identities = unseen_identities(15, 3, seed=2)
    found = calibrate(templates, rows, identities, held_out=held_out, target_rate=0.5, margin_threshold=0.001)
    misidentified, rejected = [], []
    for name in templates:
        own = [row for row in held_out.get(name, []) if row.isfinite().all()]
        matches = [naive_match(templates, row) for row in own]
        passed = [similarity >= found.threshold and margin >= 0.001 for _, similarity, margin in matches]
        if own:
            misidentified.append(np.mean([ok and best != name for ok, (best, _, _) in zip(passed, matches, strict=True)]))
            rejected.append(1 - np.mean(passed))
    assert found.misidentification_rate is not None
    assert found.false_non_match_rate is not None
    assert found.misidentification_rate.value == pytest.approx(np.mean(misidentified))
    assert found.false_non_match_rate.value == pytest.approx(np.mean(rejected))
    assert 0 < found.misidentification_rate.value < 1
    assert 0 < found.false_non_match_rate.value < 1
    assert (found.false_non_match_rate.people, found.false_non_match_rate.photos) == (10, 28)
    assert found.false_non_match_rate.upper == upper_confidence_bound(found.false_non_match_rate.value, 10)


def test_more_people_enrolled_need_a_higher_threshold() -> None:
    taken = random_embeddings(200, 4, draws(1))
    rows, identities = unseen_identities(40, 3, seed=2)
    few, many = (calibrate(enroll(taken[:count]), rows, identities, target_rate=0.05) for count in (10, 200))
    assert (few.enrolled, many.enrolled) == (10, 200)
    assert many.threshold > few.threshold


def test_unseen_photos_without_a_face_are_ignored() -> None:
    templates = enroll(random_embeddings(8, 4, draws(1)))
    rows, identities = unseen_identities(15, 3, seed=2)
    spoilt = torch.cat([rows, torch.full((2, SIZE), math.nan)])
    assert calibrate(templates, spoilt, torch.cat([identities, torch.tensor([0, 99])])) == calibrate(templates, rows, identities)


def test_equal_scores_are_all_rejected() -> None:
    templates = {"a": torch.eye(SIZE)[0], "b": torch.eye(SIZE)[1]}
    row = unit(torch.eye(SIZE)[0] + 0.3 * torch.eye(SIZE)[1])
    found = calibrate(templates, row.repeat(10, 1), torch.arange(10), target_rate=0.15, margin_threshold=0.0)
    assert found.false_match_rate.value == 0
    assert not identify(row, templates, found).accepted


def test_order_of_people_and_photos_does_not_matter() -> None:
    templates = enroll(random_embeddings(9, 4, draws(1)))
    rows, identities = unseen_identities(15, 3, seed=2)
    order = torch.randperm(len(rows), generator=draws())
    assert calibrate(dict(reversed(templates.items())), rows[order], identities[order]) == calibrate(templates, rows, identities)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"target_rate": 0.0}, "false match rate must be between 0 and 1"),
        ({"target_rate": math.nan}, "false match rate must be between 0 and 1"),
        ({"margin_threshold": -0.1}, "at least 0"),
        ({"margin_threshold": math.nan}, "at least 0"),
        ({"templates": {}}, "No person is enrolled"),
        ({"templates": {"a": torch.full((SIZE,), math.nan)}}, "No person is enrolled"),
        ({"unseen": torch.full((45, SIZE), math.nan)}, "No photo of the validation people"),
        ({"unseen": torch.zeros(0, SIZE), "identities": torch.zeros(0, dtype=torch.long)}, "No photo of the validation people"),
        ({"unseen": torch.ones(45, SIZE + 1)}, f"has {SIZE + 1} numbers and the templates have {SIZE}"),
        ({"templates": {"a": torch.ones(3), "b": torch.ones(4)}}, "different lengths"),
    ],
)
def test_invalid_calibration_inputs_raise(change: dict[str, object], sentence: str) -> None:
    rows, identities = unseen_identities(15, 3, seed=2)
    given: dict[str, object] = {"templates": enroll(random_embeddings(4, 4, draws(1))), "unseen": rows, "identities": identities} | change
    with pytest.raises(OneshuiError, match=sentence) as caught:
        calibrate(**given)  # type: ignore[arg-type]
    assert isinstance(caught.value, UsageError) == ("different" not in sentence and "numbers" not in sentence)


def test_calibration_round_trips_through_json() -> None:
    taken = random_embeddings(6, 6, draws(1))
    templates = enroll(taken[:, :5])
    held_out = {name: own[5:] for name, own in zip(templates, taken, strict=True)}
    for more in ({}, {"held_out": held_out}):
        found = calibrate(templates, *unseen_identities(15, 3, seed=2), **more)
        assert Calibration.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


def test_keys_of_a_stored_calibration_are_stable() -> None:
    rate = {"value": 0.0, "upper": 0.1, "people": 20, "photos": 40}
    stored = {"threshold": 0.5, "margin": 0.25, "enrolled": 3, "wanted": 0.01, "false_match": rate, "mistaken": rate, "missed": None}
    calibration = Calibration.from_dict(stored)
    assert calibration == Calibration(0.5, 0.25, 3, 0.01, ErrorRate(**rate), ErrorRate(**rate))  # type: ignore[arg-type]
    assert list(calibration.to_dict().items()) == list(stored.items())


@pytest.mark.parametrize("key", ["threshold", "false_match", "enrolled"])
@pytest.mark.parametrize("value", [None, "text", {}, ()])
def test_damaged_calibration_raises(key: str, value: object) -> None:
    values = calibration_with().to_dict()
    with pytest.raises(OneshuiError, match="damaged"):
        Calibration.from_dict({name: old for name, old in values.items() if name != key} if value == () else values | {key: value})


def test_calibration_text_contains_rates_and_the_number_of_enrolled_people() -> None:
    words = str(
        Calibration(0.9554, 0.0071, 179, 0.01, ErrorRate(0.0081, 0.066, 60, 700), ErrorRate(0.0, 0.2, 12, 12), ErrorRate(0.25, 0.5, 12, 12))
    )
    for part in ("0.955", "0.007", "179 people enrolled", "0.81 % (at most 6.6 %, from 60 people)", "in 0 % (", "in 25 % ("):
        assert part in words
    assert str(ErrorRate(1.0, 1.0, 1, 4)) == "100 % (at most 100 %, from 1 person)"
    assert "enrolled person is matched with another" not in str(calibration_with())


# Identification


def test_best_match_equals_a_slow_loop() -> None:
    templates = enroll(random_embeddings(30, 3, draws(1)))
    calibration = calibration_with(threshold=0.75, margin_threshold=0.05)
    rows = random_embeddings(40, 1, draws(1))[:, 0]
    found = [identify(row, templates, calibration) for row in rows]
    for row, match in zip(rows, found, strict=True):
        name, similarity, margin = naive_match(templates, row)
        assert match.person == name
        assert (match.similarity, match.runner_up_margin) == (pytest.approx(similarity, abs=2e-9), pytest.approx(margin, abs=2e-9))
        assert match.accepted == (similarity >= 0.75 and margin >= 0.05)
    assert {match.accepted for match in found} == {True, False}


def test_threshold_and_margin_are_inclusive() -> None:
    templates = {"a": torch.eye(SIZE)[0], "b": torch.eye(SIZE)[1]}
    photo = unit(torch.tensor([0.8, 0.6, *[0.0] * (SIZE - 2)], dtype=torch.float64))
    exact = identify(photo, templates, calibration_with())
    assert identify(photo, templates, calibration_with(exact.similarity, exact.runner_up_margin)).accepted
    assert not identify(photo, templates, calibration_with(math.nextafter(exact.similarity, 2), 0.0)).accepted
    assert not identify(photo, templates, calibration_with(0.0, math.nextafter(exact.runner_up_margin, 2))).accepted


def test_tie_is_not_accepted() -> None:
    templates = {"a": torch.eye(SIZE)[0], "twin": torch.eye(SIZE)[0]}
    match = identify(torch.eye(SIZE)[0], templates, calibration_with(margin_threshold=0.0))
    assert (match.similarity, match.runner_up_margin, match.accepted) == (1.0, 0.0, False)


def test_single_person_has_no_runner_up() -> None:
    templates = {"a": torch.eye(SIZE)[0]}
    match = identify(unit(torch.ones(SIZE)), templates, calibration_with(threshold=0.2))
    assert (match.person, match.similarity, match.runner_up_margin) == ("a", pytest.approx(1 / math.sqrt(SIZE)), math.inf)
    assert match.accepted
    assert "no other person is enrolled" in str(match)
    assert not identify(unit(torch.ones(SIZE)), templates, calibration_with(threshold=0.3)).accepted
    assert calibrate(templates, *unseen_identities(5, 2, seed=1)).margin_threshold == 0


@pytest.mark.parametrize(
    ("embedding", "templates"),
    [
        (torch.full((SIZE,), math.nan), {"a": torch.eye(SIZE)[0]}),
        (torch.eye(SIZE)[0], {}),
        (torch.eye(SIZE)[0], {"a": torch.full((SIZE,), math.nan)}),
    ],
    ids=["no face", "no person", "no template"],
)
def test_no_match_without_embedding_or_templates(embedding: torch.Tensor, templates: Templates) -> None:
    match = identify(embedding, templates, calibration_with(threshold=-1.0))
    assert (match.person, match.accepted) == (None, False)
    assert "not recognised" in str(match)
    assert "nan" not in str(match)


def test_people_without_a_template_never_match() -> None:
    templates = {"a": torch.eye(SIZE)[0], "gone": torch.full((SIZE,), math.nan)}
    match = identify(torch.eye(SIZE)[0], templates, calibration_with())
    assert (match.person, match.runner_up_margin, match.accepted) == ("a", math.inf, True)


def test_embedding_of_another_encoder_raises() -> None:
    with pytest.raises(OneshuiError, match="different encoders"):
        identify(torch.ones(3), {"a": torch.eye(SIZE)[0]}, calibration_with())


def test_match_text_contains_no_name() -> None:
    match = Match("Jane", 0.9712, 0.0431, True, 0.955, 0.007)
    assert str(match) == (
        "The photo is recognised: its best similarity is 0.971 (0.955 needed), it is 0.043 ahead of the runner-up (0.007 needed)."
    )
    assert "not recognised with enough certainty" in str(Match("Jane", 0.9, 0.0431, False, 0.955, 0.007))
    assert "Jane" not in str(match) + repr(match)
