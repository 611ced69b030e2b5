"""Matching signatures on simulated people: against slow loops, against scipy, and how often the bound holds."""

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
from oneshui_hf.recognition.matching import Calibration, Match, Rate, calibrate, enrol, recognise, upper_bound

SIZE = 16
Photos = dict[str, torch.Tensor]


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def photos(count: int, each: int, generator: torch.Generator, spread: float = 0.8) -> torch.Tensor:
    """Directions around each person's own, (count, each, SIZE), as from a von Mises-Fisher distribution."""
    own = unit(torch.randn(count, 1, SIZE, generator=generator))
    return unit(own + spread * torch.randn(count, each, SIZE, generator=generator) / math.sqrt(SIZE))


def enrolled(taken: torch.Tensor) -> Photos:
    return {f"p{i:03d}": signature for i, own in enumerate(taken) if (signature := enrol(own)) is not None}


def strangers(count: int, each: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return photos(count, each, draws(seed)).flatten(0, 1), torch.arange(count).repeat_interleave(each)


def naive(people: Photos, photo: torch.Tensor) -> tuple[str, float, float]:
    """Whom a photo resembles most, how much, and the lead, name by name in numpy."""
    found = []
    for name, signature in people.items():
        a, b = signature.numpy().astype(np.float64), photo.numpy().astype(np.float64)
        found.append((float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), name))
    found.sort(reverse=True)
    return found[0][1], found[0][0], found[0][0] - found[1][0] if len(found) > 1 else math.inf


def made(threshold: float = 0.5, margin: float = 0.0) -> Calibration:
    return Calibration(threshold, margin, 3, 0.01, Rate(0.0, 0.1, 20, 40))


# Enrolment


def test_signature_of_a_person_is_the_direction_of_the_mean() -> None:
    own = photos(1, 7, draws())[0]
    found = enrol(own)
    assert found is not None
    mean = own.double().numpy().mean(axis=0)
    assert found.dtype == torch.float16
    assert found.shape == (SIZE,)
    np.testing.assert_allclose(found.double().numpy(), mean / np.linalg.norm(mean), atol=5e-4)


def test_signature_of_a_person_is_small() -> None:
    found = enrol(unit(torch.randn(5, 384, generator=draws())))
    assert found is not None
    assert found.numel() * found.element_size() <= 1024


def test_photos_without_a_face_are_left_out_of_a_person() -> None:
    own = photos(1, 4, draws())[0]
    spoilt = torch.cat([own[:2], torch.full((1, SIZE), math.nan), own[2:]])
    first, second = enrol(own), enrol(spoilt)
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "signatures",
    [torch.zeros(0, SIZE), torch.full((3, SIZE), math.nan), torch.stack([torch.eye(SIZE)[0], -torch.eye(SIZE)[0]])],
    ids=["no photo", "no face", "opposites"],
)
def test_who_has_no_signature_is_not_enrolled(signatures: torch.Tensor) -> None:
    assert enrol(signatures) is None


# The bound


def test_bound_for_whole_counts_is_clopper_pearsons_at_a_smaller_error() -> None:
    """Bentkus: e times the binomial tail, so the level is 0.05 / e."""
    for people in (1, 5, 60, 299):
        for count in (0, 1, 4):
            if count < people:
                wanted = stats.beta.ppf(1 - 0.05 / math.e, count + 1, people - count)
                assert upper_bound(count / people, people) == pytest.approx(wanted, abs=1e-9)


def test_bound_between_whole_counts_lies_between() -> None:
    ends = [upper_bound(count / 50, 50) for count in (0, 0.3, 0.6, 1)]
    assert ends == sorted(ends)
    assert ends[0] < ends[1] < ends[3]
    error = [stats.binom.logcdf(count, 50, ends[1]) for count in (0, 1)]
    assert 0.7 * error[0] + 0.3 * error[1] + 1 == pytest.approx(math.log(0.05), abs=1e-6)


@pytest.mark.parametrize(("share", "people"), [(1.0, 10), (0.0, 0)])
def test_bound_that_nothing_is_known_of_is_one(share: float, people: int) -> None:
    assert upper_bound(share, people) == 1


@given(st.floats(0, 1), st.integers(1, 120))
@settings(max_examples=40, deadline=None)
def test_bound_is_a_share_above_the_estimate(share: float, people: int) -> None:
    assert share <= upper_bound(share, people) <= 1


@pytest.mark.parametrize("each", [1, 12])
def test_bound_holds_for_the_threshold_that_was_chosen_on_the_same_people(each: int) -> None:
    """The true rate of each threshold is known from many strangers more. That of photos counted as if independent is far too low."""
    generator, runs, rate, count = draws(1), 100, 0.05, 30
    held = naive_held = 0
    people = enrolled(photos(20, 6, generator))
    gallery = unit(torch.stack(list(people.values())).double())

    def best(of: torch.Tensor) -> torch.Tensor:
        return (of.double() @ gallery.T).amax(-1)

    many = best(photos(10_000, 1, generator, spread=0.4)).flatten()
    for _ in range(runs):
        taken = photos(count, each, generator, spread=0.4)
        found = calibrate(people, taken.flatten(0, 1), torch.arange(count).repeat_interleave(each), rate=rate, margin=0.0)
        truth = (many >= found.threshold).double().mean().item()
        held += truth <= found.false_match.upper
        naive_held += truth <= stats.beta.ppf(0.95, rate * count * each + 1, (1 - rate) * count * each)
    print(f"{each} photos a person: the bound holds in {held / runs:.1%}, the one over photos in {naive_held / runs:.1%}")
    assert held / runs >= 0.95
    if each > 1:
        assert naive_held / runs < 0.9


# Calibration


def brute(people: Photos, rows: torch.Tensor, identities: torch.Tensor, rate: float) -> float:
    """The lowest threshold, tried one by one: each score, and just above it."""
    scores = np.array([naive(people, row)[1] for row in rows])
    owners = identities.numpy()

    def share(threshold: float) -> float:
        return float(np.mean([(scores[owners == person] >= threshold).mean() for person in np.unique(owners)]))

    tried = sorted({*scores, *(np.nextafter(s, 2) for s in scores)})
    return next(t for t in tried if share(t) <= rate + 1e-12)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_threshold_is_the_lowest_that_lets_few_enough_through(rate: float) -> None:
    people = enrolled(photos(8, 4, draws(1)))
    rows, identities = strangers(15, 4, seed=2)
    kept = torch.rand(len(rows), generator=draws(3)) < 0.8  # people with 2, 3 and 4 photos
    rows, identities = rows[kept], identities[kept] * 7 + 100
    found = calibrate(people, rows, identities, rate=rate, margin=0.0)
    assert found.threshold == pytest.approx(brute(people, rows, identities, rate), abs=2e-9)
    accepted = np.array([recognise(row, people, found).accepted for row in rows])
    shares = [accepted[identities.numpy() == person].mean() for person in identities.unique().numpy()]
    assert found.false_match.value == pytest.approx(np.mean(shares))
    assert 0 < found.false_match.value <= rate or rate == 0.01
    assert (found.false_match.people, found.false_match.photos) == (len(shares), len(rows))
    assert found.false_match.upper == upper_bound(rate, len(shares))


def test_each_stranger_counts_the_same_however_many_photos_they_have() -> None:
    people = {"a": torch.eye(SIZE)[0]}
    angle = torch.tensor([0.9, 0.8] + [0.1] * 98)  # the first person's two photos are the likest; the other has 98
    rows = unit(torch.stack([angle, (1 - angle**2).sqrt(), *torch.zeros(SIZE - 2, 100)], dim=1))
    identities = torch.tensor([0, 0] + [1] * 98)
    assert calibrate(people, rows, identities, rate=0.1).threshold == pytest.approx(0.9, abs=1e-6)  # one photo is a quarter
    assert calibrate(people, rows, identities, rate=0.3).threshold == pytest.approx(0.8, abs=1e-6)


def test_margin_is_the_median_lead_of_strangers_and_refuses_more() -> None:
    people = enrolled(photos(8, 4, draws(1)))
    rows, identities = strangers(15, 3, seed=2)
    found, without = (calibrate(people, rows, identities, rate=0.3, margin=m) for m in (None, 0.0))
    assert found.margin == pytest.approx(np.median([naive(people, row)[2] for row in rows]), abs=2e-9)
    assert found.threshold == without.threshold
    assert found.false_match.value < without.false_match.value
    assert found.false_match.upper == without.false_match.upper


def test_rates_of_people_enrolled_are_those_of_their_held_out_photos() -> None:
    taken = photos(12, 8, draws(1), spread=1.6)
    people = enrolled(taken[:, :5])
    held_out = {name: own[5:] for name, own in zip(people, taken, strict=True)}
    del held_out["p003"]
    held_out["p004"] = torch.cat([held_out["p004"][:1], torch.full((1, SIZE), math.nan)])
    held_out["p005"] = torch.full((2, SIZE), math.nan)
    held_out["nobody"] = taken[0]
    rows, identities = strangers(15, 3, seed=2)
    found = calibrate(people, rows, identities, held_out=held_out, rate=0.5, margin=0.001)
    mistaken, missed = [], []
    for name in people:
        own = [row for row in held_out.get(name, []) if row.isfinite().all()]
        told = [naive(people, row) for row in own]
        passed = [similarity >= found.threshold and lead >= 0.001 for _, similarity, lead in told]
        if own:
            mistaken.append(np.mean([ok and best != name for ok, (best, _, _) in zip(passed, told, strict=True)]))
            missed.append(1 - np.mean(passed))
    assert found.mistaken is not None
    assert found.missed is not None
    assert found.mistaken.value == pytest.approx(np.mean(mistaken))
    assert found.missed.value == pytest.approx(np.mean(missed))
    assert 0 < found.mistaken.value < 1
    assert 0 < found.missed.value < 1
    assert (found.missed.people, found.missed.photos) == (10, 28)
    assert found.missed.upper == upper_bound(found.missed.value, 10)


def test_more_people_enrolled_need_a_higher_threshold() -> None:
    taken = photos(200, 4, draws(1))
    rows, identities = strangers(40, 3, seed=2)
    few, many = (calibrate(enrolled(taken[:count]), rows, identities, rate=0.05) for count in (10, 200))
    assert (few.enrolled, many.enrolled) == (10, 200)
    assert many.threshold > few.threshold


def test_strangers_without_a_face_are_left_out() -> None:
    people = enrolled(photos(8, 4, draws(1)))
    rows, identities = strangers(15, 3, seed=2)
    spoilt = torch.cat([rows, torch.full((2, SIZE), math.nan)])
    assert calibrate(people, spoilt, torch.cat([identities, torch.tensor([0, 99])])) == calibrate(people, rows, identities)


def test_strangers_who_tie_are_all_refused() -> None:
    people = {"a": torch.eye(SIZE)[0], "b": torch.eye(SIZE)[1]}
    row = unit(torch.eye(SIZE)[0] + 0.3 * torch.eye(SIZE)[1])
    found = calibrate(people, row.repeat(10, 1), torch.arange(10), rate=0.15, margin=0.0)
    assert found.false_match.value == 0
    assert not recognise(row, people, found).accepted


def test_order_of_people_and_photos_does_not_matter() -> None:
    people = enrolled(photos(9, 4, draws(1)))
    rows, identities = strangers(15, 3, seed=2)
    order = torch.randperm(len(rows), generator=draws())
    assert calibrate(dict(reversed(people.items())), rows[order], identities[order]) == calibrate(people, rows, identities)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rate": 0.0}, "false-match rate lies between 0 and 1"),
        ({"rate": math.nan}, "false-match rate lies between 0 and 1"),
        ({"margin": -0.1}, "at least 0"),
        ({"margin": math.nan}, "at least 0"),
        ({"people": {}}, "Nobody is enrolled"),
        ({"people": {"a": torch.full((SIZE,), math.nan)}}, "Nobody is enrolled"),
        ({"strangers": torch.full((45, SIZE), math.nan)}, "No photo of the validation people"),
        ({"strangers": torch.zeros(0, SIZE), "identities": torch.zeros(0, dtype=torch.long)}, "No photo of the validation people"),
        ({"strangers": torch.ones(45, SIZE + 1)}, f"has {SIZE + 1} numbers and those of the people have {SIZE}"),
        ({"people": {"a": torch.ones(3), "b": torch.ones(4)}}, "different lengths"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(change: dict[str, object], sentence: str) -> None:
    rows, identities = strangers(15, 3, seed=2)
    given: dict[str, object] = {"people": enrolled(photos(4, 4, draws(1))), "strangers": rows, "identities": identities} | change
    with pytest.raises(OneshuiError, match=sentence) as caught:
        calibrate(**given)  # type: ignore[arg-type]
    assert isinstance(caught.value, UsageError) == ("different" not in sentence and "numbers" not in sentence)


def test_calibration_survives_json() -> None:
    taken = photos(6, 6, draws(1))
    people = enrolled(taken[:, :5])
    held_out = {name: own[5:] for name, own in zip(people, taken, strict=True)}
    for more in ({}, {"held_out": held_out}):
        found = calibrate(people, *strangers(15, 3, seed=2), **more)
        assert Calibration.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


@pytest.mark.parametrize("key", ["threshold", "false_match", "enrolled"])
@pytest.mark.parametrize("value", [None, "text", {}, ()])
def test_damaged_calibration_is_refused(key: str, value: object) -> None:
    values = made().to_dict()
    with pytest.raises(OneshuiError, match="damaged"):
        Calibration.from_dict({name: old for name, old in values.items() if name != key} if value == () else values | {key: value})


def test_calibration_tells_its_rates_and_for_how_many_people_they_hold() -> None:
    words = str(Calibration(0.9554, 0.0071, 179, 0.01, Rate(0.0081, 0.066, 60, 700), Rate(0.0, 0.2, 12, 12), Rate(0.25, 0.5, 12, 12)))
    for part in ("0.955", "0.007", "179 people enrolled", "0.81 % (at most 6.6 %, from 60 people)", "in 0 % (", "in 25 % ("):
        assert part in words
    assert str(Rate(1.0, 1.0, 1, 4)) == "100 % (at most 100 %, from 1 person)"
    assert "somebody enrolled" not in str(made())


# Recognition


def test_best_match_is_that_of_a_slow_loop() -> None:
    people = enrolled(photos(30, 3, draws(1)))
    calibration = made(threshold=0.75, margin=0.05)
    rows = photos(40, 1, draws(1))[:, 0]
    found = [recognise(row, people, calibration) for row in rows]
    for row, match in zip(rows, found, strict=True):
        name, similarity, lead = naive(people, row)
        assert match.person == name
        assert (match.similarity, match.lead) == (pytest.approx(similarity, abs=2e-9), pytest.approx(lead, abs=2e-9))
        assert match.accepted == (similarity >= 0.75 and lead >= 0.05)
    assert {match.accepted for match in found} == {True, False}


def test_threshold_and_margin_themselves_are_reached() -> None:
    people = {"a": torch.eye(SIZE)[0], "b": torch.eye(SIZE)[1]}
    photo = unit(torch.tensor([0.8, 0.6, *[0.0] * (SIZE - 2)], dtype=torch.float64))
    exact = recognise(photo, people, made())
    assert recognise(photo, people, made(exact.similarity, exact.lead)).accepted
    assert not recognise(photo, people, made(math.nextafter(exact.similarity, 2), 0.0)).accepted
    assert not recognise(photo, people, made(0.0, math.nextafter(exact.lead, 2))).accepted


def test_who_ties_with_another_is_not_recognised() -> None:
    people = {"a": torch.eye(SIZE)[0], "twin": torch.eye(SIZE)[0]}
    match = recognise(torch.eye(SIZE)[0], people, made(margin=0.0))
    assert (match.similarity, match.lead, match.accepted) == (1.0, 0.0, False)


def test_who_is_alone_has_no_runner_up() -> None:
    people = {"a": torch.eye(SIZE)[0]}
    match = recognise(unit(torch.ones(SIZE)), people, made(threshold=0.2))
    assert (match.person, match.similarity, match.lead) == ("a", pytest.approx(1 / math.sqrt(SIZE)), math.inf)
    assert match.accepted
    assert "nobody else is enrolled" in str(match)
    assert not recognise(unit(torch.ones(SIZE)), people, made(threshold=0.3)).accepted
    assert calibrate(people, *strangers(5, 2, seed=1)).margin == 0


@pytest.mark.parametrize(
    ("signature", "people"),
    [
        (torch.full((SIZE,), math.nan), {"a": torch.eye(SIZE)[0]}),
        (torch.eye(SIZE)[0], {}),
        (torch.eye(SIZE)[0], {"a": torch.full((SIZE,), math.nan)}),
    ],
    ids=["no face", "nobody", "nobody with a signature"],
)
def test_without_something_to_compare_nobody_is_recognised(signature: torch.Tensor, people: Photos) -> None:
    match = recognise(signature, people, made(threshold=-1.0))
    assert (match.person, match.accepted) == (None, False)
    assert "not recognised" in str(match)
    assert "nan" not in str(match)


def test_people_without_a_signature_never_match() -> None:
    people = {"a": torch.eye(SIZE)[0], "gone": torch.full((SIZE,), math.nan)}
    match = recognise(torch.eye(SIZE)[0], people, made())
    assert (match.person, match.lead, match.accepted) == ("a", math.inf, True)


def test_signature_of_another_encoder_is_refused() -> None:
    with pytest.raises(OneshuiError, match="different encoders"):
        recognise(torch.ones(3), {"a": torch.eye(SIZE)[0]}, made())


def test_match_names_nobody_in_words() -> None:
    match = Match("Jane", 0.9712, 0.0431, True, 0.955, 0.007)
    assert str(match) == (
        "The photo is recognised: its best similarity is 0.971 (0.955 needed), it is 0.043 ahead of the runner-up (0.007 needed)."
    )
    assert "not recognised with enough certainty" in str(Match("Jane", 0.9, 0.0431, False, 0.955, 0.007))
    assert "Jane" not in str(match) + repr(match)
