"""Every metric from predictions made by hand: worlds in which the answer is known, and scikit-learn beside it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from oneshui_hf.data.schema import TaskKind
from oneshui_hf.metrics.measure import SCORED, Comparison, Predictions, Says, Settings, measure
from oneshui_hf.models.outputs import losses
from oneshui_hf.runs import dump_json

KINDS: tuple[TaskKind, ...] = ("multi_label", "single_label")
SIZES = {"retain": (20, 5), "forget": (10, 6), "val": (10, 6), "test": (25, 6), "support": (10, 1)}  # people, photos of each
LABELS = 5
QUICK = Settings(resamples=200)


def say(seed: int, kind: TaskKind = "multi_label", forget: float = 1.0, **sizes: tuple[int, int]) -> Says:
    """Return what a model says: right by a margin, under noise of its own seed. All models see the same photos, labels and people.

    Args:
        seed: Of the model.
        kind: What it predicts.
        forget: Its margin on the forget set; all others have 1.
        sizes: People and photos of a set, under its name with `_size` behind it, in place of `SIZES`.
    """
    said = {}
    for number, (name, (people, photos)) in enumerate(SIZES.items()):
        people, photos = sizes.get(f"{name}_size", (people, photos))
        world, model = (torch.Generator().manual_seed(1000 * number + of) for of in (0, seed + 1))
        count = people * photos
        identities = 100 * number + torch.arange(people).repeat_interleave(photos)
        if kind == "multi_label":
            labels = (torch.rand(count, LABELS, generator=world) < 0.5).float()
            truth = 2 * labels - 1
        else:
            labels = torch.randint(LABELS, (count,), generator=world)
            truth = torch.nn.functional.one_hot(labels, LABELS).float()
        hard = torch.randn(count, 1, generator=world) / 2  # some photos are harder than others, to every model
        noise, other = (torch.randn(count, LABELS, generator=model) for _ in range(2))
        logits = ((forget if name == "forget" else 1.0) + hard) * truth + noise
        features = torch.cat([truth, torch.randn(count, 3, generator=model)], 1) if name in ("forget", "test") else None
        views = (logits + other / 10,) if name in ("forget", "test") else ()
        said[name] = Predictions(logits, labels, losses(logits, labels, kind), identities, features, views)
    return said


def with_logits(says: Says, kind: TaskKind, **logits: torch.Tensor) -> Says:
    """Return what a model says, with other logits on some sets."""
    changed = {
        name: replace(says[name], logits=new, losses=losses(new, says[name].labels, kind), views=(new,) if says[name].views else ())
        for name, new in logits.items()
    }
    return dict(says) | changed


def compare(model: Says, kind: TaskKind = "multi_label", forget: float = 4.0, **changes: Any) -> Comparison:
    """Return a comparison with an original that knows the forget set, an oracle, and an oracle of another seed as the reference."""
    other = say(3, kind)
    whole = {"original": say(0, kind, forget=forget), "oracle": say(1, kind), "oracles": [other], "references": [other]}
    return Comparison(model, **whole | changes)


def numbers_of(value: Any) -> list[float]:
    """Return all numbers in nested lists and mappings, and check that there is nothing else but None."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers_of(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers_of(item)]
    assert value is None or (isinstance(value, int | float) and not isinstance(value, bool)), value
    return [] if value is None else [value]


# ---------------------------------------------------------------- models of which the answer is known


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_never_saw_them_is_told_as_such(kind: TaskKind) -> None:
    found, _ = measure(compare(say(2, kind), kind), kind, QUICK)
    for name in ("loss", "rmia", "rmia_two_sided", "logistic"):
        low, high = found["attacks"][name]["interval"]
        assert low < 0.5 < high, name
        assert found["attacks"][name]["auc_either_way"] < 0.65
    low, high = found["intervals"]["gap_closure"]
    assert low < 1 < high
    assert found["gap_closure"] == pytest.approx(1, abs=0.3)
    assert found["tow"] > 80
    assert abs(found["to_oracle"]["forget"]["loss_gap"]) < 0.1
    assert found["noise_floor"]["oracles"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_doing_nothing_closes_no_gap(kind: TaskKind) -> None:
    original, oracle = say(0, kind, forget=4.0), say(1, kind)
    found, _ = measure(compare(original, kind, original=original, oracle=oracle), kind, QUICK)
    assert found["gap_closure"] == 0
    assert found["intervals"]["gap_closure"] is None  # it holds by definition
    apart = 1.0
    for name in ("retain", "forget", "test"):
        scores = []
        for said in (original[name], oracle[name]):
            if kind == "multi_label":
                scores.append(average_precision_score(said.labels.numpy(), said.logits.numpy(), average="macro"))
            else:
                scores.append(accuracy_score(said.labels.numpy(), said.logits.argmax(1).numpy()))
        assert found[name][found["score"]] == pytest.approx(100 * scores[0], abs=1e-4)
        apart *= 1 - abs(scores[0] - scores[1])
    assert found["tow"] == pytest.approx(100 * apart, abs=1e-3)
    loss = found["attacks"]["loss"]
    truth = [1] * len(original["forget"].losses) + [0] * len(original["test"].losses)
    by_hand = roc_auc_score(truth, (-torch.cat([original["forget"].losses, original["test"].losses])).numpy())
    assert loss["auc"] == pytest.approx(by_hand, abs=1e-9)
    assert loss["auc"] > 0.8
    assert loss["interval"][0] > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_forgetting_too_much_betrays_as_well(kind: TaskKind) -> None:
    plain = say(2, kind)
    worse = with_logits(plain, kind, forget=-2 * plain["forget"].logits)
    assert worse["forget"].losses.mean() > 3 * plain["forget"].losses.mean()
    found, curves = measure(compare(worse, kind), kind, QUICK)
    for name in ("loss", "rmia_two_sided"):
        attack = found["attacks"][name]
        assert attack["auc"] < 0.2
        assert attack["auc_either_way"] > 0.8
        assert attack["interval"][1] < 0.5
        assert attack["tpr"]["0.1"] > 0.3  # read in the direction that tells
        curve = curves["roc"][name]
        area = sum(
            (b - a) * (c + d) / 2 for a, b, c, d in zip(curve["fpr"], curve["fpr"][1:], curve["tpr"], curve["tpr"][1:], strict=False)
        )
        assert area > 0.8  # and drawn in it
    assert found["attacks"]["rmia"]["auc"] < 0.5
    assert found["attacks"][found["attacks"]["strongest"]]["auc_either_way"] > 0.8
    assert found["gap_closure"] > 1
    assert found["to_oracle"]["forget"]["loss_gap"] > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_oracle_against_itself(kind: TaskKind) -> None:
    oracle = say(1, kind)
    found, _ = measure(compare(oracle, kind, oracle=oracle), kind, QUICK)
    assert found["tow"] == 100
    assert found["intervals"]["tow"] is None
    assert found["gap_closure"] == 1
    for name in SCORED:
        assert found["to_oracle"][name] == {"jensen_shannon": pytest.approx(0, abs=1e-15), "loss_gap": 0, "largest_loss_gap": 0}
    floor = found["noise_floor"]
    other = measure(compare(say(3, kind), kind, oracle=oracle, oracles=[], references=[]), kind, QUICK)[0]
    for name in SCORED:  # the floor is another oracle measured as any model is
        assert floor[name] == pytest.approx(abs(other[name][found["score"]] - found[name][found["score"]]), abs=1e-9)
    assert floor["tow"] == pytest.approx(other["tow"], abs=1e-9)
    assert floor["gap_closure"] == pytest.approx(abs(other["gap_closure"] - 1), abs=1e-9)
    assert floor["jensen_shannon"] == pytest.approx(other["to_oracle"]["forget"]["jensen_shannon"], abs=1e-12)


# ---------------------------------------------------------------- what is missing


def test_one_forget_person() -> None:
    one: dict[str, Any] = {"forget_size": (1, 6), "support_size": (1, 1)}
    other = say(3, **one)
    comparison = Comparison(say(2, **one), say(0, forget=4.0, **one), say(1, **one), [other], [other])
    found, curves = measure(comparison, "multi_label", QUICK)
    assert found["intervals"]["forget"] == {"map": None, "loss": None}
    assert found["intervals"]["gap_closure"] is None
    assert found["intervals"]["tow"] is None
    assert found["intervals"]["test"]["map"] is not None
    assert "logistic" not in found["attacks"]
    assert found["attacks"]["loss"]["interval"] is None
    assert found["attacks"]["loss"]["auc_either_way"] is None
    assert 0 <= found["attacks"]["loss"]["auc"] <= 1
    assert found["attacks"]["strongest"] in ("loss", "rmia", "rmia_two_sided")
    assert found["probe"] is None
    assert "With one person on the forget set there are no intervals." in found["cannot_tell"]
    assert len(curves["people"]) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_model_that_broke_down_gives_null_and_hides_nothing(kind: TaskKind, everywhere: bool) -> None:
    plain = say(2, kind)
    nan = {name: torch.full_like(plain[name].logits, math.nan) for name in (plain if everywhere else ("forget",))}
    broken = with_logits(plain, kind, **nan)
    features = torch.full_like(plain["forget"].features, math.nan)  # type: ignore[arg-type]
    broken = dict(broken) | {"forget": replace(broken["forget"], features=features)}
    found, curves = measure(compare(broken, kind), kind, QUICK)
    text = json.dumps([found, curves], allow_nan=False)
    assert "NaN" not in text
    assert found["forget"]["loss"] is None
    assert found["intervals"]["forget"]["loss"] is None
    assert found["tow"] is None
    assert found["intervals"]["tow"] is None
    assert found["gap_closure"] is None
    assert found["probe"] is None
    assert found["attacks"]["loss"]["auc"] is None
    assert found["attacks"][found["attacks"]["strongest"]]["auc"] is None  # no number of another attack hides it
    assert "loss" not in curves["roc"]
    assert (found["test"]["loss"] is None) == everywhere
    assert sum(curves["losses"]["after"]["forget"]) == len(plain["forget"].losses)
    assert len(curves["people"]) == SIZES["forget"][0]


def test_without_an_oracle() -> None:
    found, curves = measure(compare(say(2), oracle=None, oracles=[], references=[]), "multi_label", QUICK)
    assert [found[name] for name in ("tow", "gap_closure", "to_oracle", "noise_floor")] == [None] * 4
    assert [found["intervals"][name] for name in ("tow", "gap_closure")] == [None, None]
    assert any(told.startswith("Without an oracle") for told in found["cannot_tell"])
    assert all(person["oracle"] is None and person["original"] is not None for person in curves["people"])


def test_without_an_original() -> None:
    found, curves = measure(compare(say(2), original=None), "multi_label", QUICK)
    assert found["tow"] is not None
    assert found["gap_closure"] is None
    assert found["intervals"]["gap_closure"] is None
    assert "gap_closure" not in found["noise_floor"]
    assert curves["losses"]["before"] is None
    losses_of = [person["model"] for person in curves["people"]]
    assert losses_of == sorted(losses_of)
    assert all(person["original"] is None for person in curves["people"])


def test_without_references() -> None:
    found, curves = measure(compare(say(2), oracles=[], references=[]), "multi_label", QUICK)
    assert set(found["attacks"]) == {"loss", "logistic", "strongest"}
    assert set(curves["roc"]) == {"loss", "logistic"}
    assert found["noise_floor"] is None
    assert any(told.startswith("RMIA was not tried") for told in found["cannot_tell"])
    alone, _ = measure(Comparison(say(2)), "multi_label", QUICK)
    for name in ("retain", "forget", "val", "test", "support", "probe"):
        assert alone[name] == found[name]
    assert alone["attacks"] == found["attacks"]


def test_u_lira_needs_two_oracles_besides_the_model() -> None:
    oracle, others = say(1), [say(3), say(4)]

    def attacks(model: Says, oracles: list[Says]) -> dict[str, Any]:
        found: dict[str, Any] = measure(compare(model, oracle=oracle, oracles=oracles, references=oracles), "multi_label", QUICK)[0][
            "attacks"
        ]
        return found

    assert "u_lira" not in attacks(say(2), [])
    assert attacks(say(2), others[:1])["u_lira"]["interval"] is None  # no formula for it
    assert "u_lira" not in attacks(oracle, others[:1])  # one other oracle is left
    assert attacks(oracle, others)["u_lira"]["auc"] == pytest.approx(0.5, abs=0.2)
    assert attacks(say(2, forget=6.0), others)["u_lira"]["auc"] > 0.8


def test_the_attack_resolves_what_the_strangers_resolve() -> None:
    found, _ = measure(compare(say(2)), "multi_label", QUICK)
    strangers = SIZES["test"][0] * SIZES["test"][1]
    loss = found["attacks"]["loss"]
    assert loss["smallest_fpr"] == 1 / strangers
    assert (loss["tpr"]["0.1"] is None, loss["tpr"]["0.01"] is None, loss["tpr"]["0.001"] is None) == (False, False, True)
    assert any("150 photos of 25 strangers do not resolve" in told and "at 0.001." in told for told in found["cannot_tell"])


def test_rmia_asks_about_every_version_with_the_given_settings() -> None:
    comparison = compare(say(2, forget=2.0), oracle=None)
    plain = measure(comparison, "multi_label", QUICK)[0]["attacks"]
    once = {name: replace(said, views=()) for name, said in comparison.model.items()}
    reference = {name: replace(said, views=()) for name, said in comparison.references[0].items()}
    fewer = measure(replace(comparison, model=once, oracles=[reference], references=[reference]), "multi_label", QUICK)[0]["attacks"]
    for other in (
        fewer,
        *(measure(comparison, "multi_label", replace(QUICK, **more))[0]["attacks"] for more in ({"rmia_a": 1.0}, {"rmia_gamma": 1.1})),
    ):
        assert other["rmia"]["auc"] != plain["rmia"]["auc"]
        assert other["loss"] == plain["loss"]


def test_the_probe_reads_people_off_their_features() -> None:
    model = say(2)
    forget = model["forget"]
    people, owner = forget.identities.unique(return_inverse=True)
    telling = torch.nn.functional.one_hot(owner, len(people)).float()
    found = measure(Comparison(dict(model) | {"forget": replace(forget, features=telling)}), "multi_label", QUICK)[0]["probe"]
    assert found == {"accuracy": 100, "balanced_accuracy": 100, "chance": pytest.approx(10), "people": 10, "photos": 30}
    assert measure(Comparison(model), "multi_label", QUICK)[0]["probe"]["balanced_accuracy"] < 60
    assert measure(Comparison(dict(model) | {"forget": replace(forget, features=None)}), "multi_label", QUICK)[0]["probe"] is None


# ---------------------------------------------------------------- intervals, bytes, curves


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_are_ordered_and_hold_their_number(kind: TaskKind) -> None:
    found, _ = measure(compare(say(2, kind, forget=1.5), kind), kind, Settings(resamples=400))
    ends = found["intervals"]
    assert (ends["level"], ends["resamples"]) == (0.95, 400)
    pairs = [(found[name][key], ends[name][key]) for name in SCORED for key in (found["score"], "loss")]
    pairs += [(found[name], ends[name]) for name in ("tow", "gap_closure")]
    pairs += [
        (attack["auc"], attack["interval"]) for attack in found["attacks"].values() if isinstance(attack, dict) and attack["interval"]
    ]
    assert len(pairs) == 8 + 2 + 4
    for value, (low, high) in pairs:
        assert low <= value <= high
        assert low < high
    for name in SCORED:
        assert 0 <= ends[name][found["score"]][0] <= ends[name][found["score"]][1] <= 100
    assert ends["tow"][1] <= 100
    wide = measure(compare(say(2, kind, forget=1.5), kind), kind, Settings(resamples=400, level=0.5))[0]["intervals"]
    assert wide["test"]["loss"][1] - wide["test"]["loss"][0] < ends["test"]["loss"][1] - ends["test"]["loss"][0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_predictions_give_the_same_bytes_whatever_the_global_state(kind: TaskKind) -> None:
    def once(seed: int, settings: Settings = QUICK) -> bytes:
        torch.manual_seed(seed)
        return dump_json(measure(compare(say(2, kind), kind), kind, settings))

    first = once(0)
    before = torch.random.get_rng_state()
    assert once(1) == first
    torch.manual_seed(0)
    assert torch.equal(before, torch.random.get_rng_state())  # and no draw is taken from it
    assert once(0, replace(QUICK, seed=1)) != first


@pytest.mark.parametrize("kind", KINDS)
def test_the_curves(kind: TaskKind) -> None:
    comparison = compare(say(2, kind), kind)
    found, curves = measure(comparison, kind, QUICK)
    numbers_of(curves)
    assert set(curves) == {"people", "losses", "roc"}
    forget, test = comparison.model["forget"], comparison.model["test"]
    for who in ("before", "after"):
        counts = curves["losses"][who]
        assert [sum(counts[name]) for name in ("forget", "test")] == [len(forget.losses), len(test.losses)]
        assert {len(counts[name]) for name in counts} == {len(curves["losses"]["edges"]) - 1}
    edges = torch.tensor(curves["losses"]["edges"], dtype=torch.float64)
    inside = test.losses[test.losses < edges[-1]].double()
    by_hand = torch.histogram(inside, edges).hist.tolist()
    assert curves["losses"]["after"]["test"][:-1] == by_hand[:-1]  # the last bin has those beyond, too
    assert curves["losses"]["edges"] == sorted(curves["losses"]["edges"])

    people = curves["people"]
    assert len(people) == SIZES["forget"][0]
    originals = [person["original"] for person in people]
    assert originals == sorted(originals)
    for who, says in (("original", comparison.original), ("model", comparison.model), ("oracle", comparison.oracle)):
        assert says
        means = [says["forget"].losses[forget.identities == person].double().mean().item() for person in forget.identities.unique()]
        assert sorted(person[who] for person in people) == pytest.approx(sorted(means), abs=1e-6)
    first = min(forget.identities.unique().tolist(), key=lambda p: comparison.original["forget"].losses[forget.identities == p].mean())  # type: ignore[index]
    assert people[0]["model"] == pytest.approx(forget.losses[forget.identities == first].mean().item(), abs=1e-6)

    assert set(curves["roc"]) == {"loss", "logistic", "rmia", "rmia_two_sided"}
    for name, curve in curves["roc"].items():
        assert (curve["members"], curve["nonmembers"]) == (len(forget.losses), len(test.losses))
        assert (curve["fpr"][0], curve["tpr"][0], curve["fpr"][-1], curve["tpr"][-1]) == (0, 0, 1, 1)
        assert curve["fpr"] == sorted(curve["fpr"])
        assert curve["tpr"] == sorted(curve["tpr"])
        assert curve["smallest_fpr"] == found["attacks"][name]["smallest_fpr"]


def test_a_curve_of_many_photos_is_thinned_and_still_ends_right() -> None:
    found, curves = measure(Comparison(say(2, test_size=(100, 12))), "multi_label", Settings(resamples=100))
    curve = curves["roc"]["loss"]
    assert len(curve["fpr"]) == len(curve["tpr"]) <= 512
    assert (curve["fpr"][0], curve["tpr"][0], curve["fpr"][-1], curve["tpr"][-1]) == (0, 0, 1, 1)
    area = sum((b - a) * (c + d) / 2 for a, b, c, d in zip(curve["fpr"], curve["fpr"][1:], curve["tpr"], curve["tpr"][1:], strict=False))
    assert max(area, 1 - area) == pytest.approx(max(found["attacks"]["loss"]["auc"], 1 - found["attacks"]["loss"]["auc"]), abs=0.01)


def test_u_lira_is_not_the_strongest_where_the_oracle_cannot_be_put_to_it() -> None:
    kind: TaskKind = "multi_label"
    original, oracle, other, third = say(0, kind, forget=4.0), say(1, kind), say(2, kind), say(3, kind)
    for oracles in ([other], [other, third]):
        found, _ = measure(Comparison(model=original, original=original, oracle=oracle, oracles=oracles, references=oracles), kind, QUICK)
        assert "u_lira" in found["attacks"]
        told = any("U-LiRA is not counted" in sentence for sentence in found["cannot_tell"])
        assert told == (len(oracles) == 1)
        assert found["attacks"]["strongest"] != "u_lira" or len(oracles) == 2


def test_a_gap_that_is_noise_is_not_closed() -> None:
    kind: TaskKind = "multi_label"
    original, oracle, other = say(1, kind), say(1, kind), say(2, kind)
    found, _ = measure(Comparison(model=say(3, kind), original=original, oracle=oracle, oracles=[other], references=[other]), kind, QUICK)
    assert found["gap_closure"] is None
    assert "Original and oracle differ on forget by no more than the noise floor: there is no gap to close." in found["cannot_tell"]
