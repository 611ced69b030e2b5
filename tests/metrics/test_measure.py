"""All metrics of generated predictions, against known answers and scikit-learn."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from oneshui_hf.data.schema import TaskKind
from oneshui_hf.metrics.comparison import Comparison, Predictions, PredictionsBySet, Settings
from oneshui_hf.metrics.measure import measure
from oneshui_hf.metrics.score_intervals import gap_closure_interval
from oneshui_hf.models.outputs import losses
from oneshui_hf.runs import dump_json
from oneshui_hf.sets import ATTACKED, COMPARED, EVALUATED, PREDICTED

KINDS: tuple[TaskKind, ...] = ("multi_label", "single_label")
SIZES = {"retain": (20, 5), "forget": (10, 6), "val": (10, 6), "test": (25, 6), "support": (10, 1)}  # people, photos per person
LABELS = 5
QUICK = Settings(resamples=200)


def predict(seed: int, kind: TaskKind = "multi_label", forget: float = 1.0, **sizes: tuple[int, int]) -> PredictionsBySet:
    """Return predictions of a model: correct by a margin, plus noise. Photos, labels and people are the same for all models.

    Args:
        seed: Of the model's noise.
        kind: What it predicts.
        forget: Its margin on the forget set; the margin is 1 on all other sets.
        sizes: People and photos of a set, as NAME_size, in place of `SIZES`.
    """
    predictions = {}
    for number, (name, (people, photos)) in enumerate(SIZES.items()):
        people, photos = sizes.get(f"{name}_size", (people, photos))
        photos_rng, model_rng = (torch.Generator().manual_seed(1000 * number + of) for of in (0, seed + 1))
        count = people * photos
        identities = 100 * number + torch.arange(people).repeat_interleave(photos)
        if kind == "multi_label":
            labels = (torch.rand(count, LABELS, generator=photos_rng) < 0.5).float()
            targets = 2 * labels - 1
        else:
            labels = torch.randint(LABELS, (count,), generator=photos_rng)
            targets = torch.nn.functional.one_hot(labels, LABELS).float()
        hard = torch.randn(count, 1, generator=photos_rng) / 2  # some photos are harder than others for every model
        noise, other = (torch.randn(count, LABELS, generator=model_rng) for _ in range(2))
        logits = ((forget if name == "forget" else 1.0) + hard) * targets + noise
        features = torch.cat([targets, torch.randn(count, 3, generator=model_rng)], 1) if name in ATTACKED else None
        views = (logits + other / 10,) if name in ATTACKED else ()
        predictions[name] = Predictions(logits, labels, losses(logits, labels, kind), identities, features, views)
    return predictions


def with_logits(model: PredictionsBySet, kind: TaskKind, **logits: torch.Tensor) -> PredictionsBySet:
    """Return predictions with other logits on some sets."""
    changed = {
        name: replace(model[name], logits=new, losses=losses(new, model[name].labels, kind), views=(new,) if model[name].views else ())
        for name, new in logits.items()
    }
    return dict(model) | changed


def compare(model: PredictionsBySet, kind: TaskKind = "multi_label", forget: float = 4.0, **changes: Any) -> Comparison:
    """Return a comparison with an original trained on the forget set, an oracle, and an oracle of another seed as the reference."""
    other = predict(3, kind)
    models = {
        "original": predict(0, kind, forget=forget),
        "oracle": predict(1, kind),
        "oracles": [other],
        "references": [other],
    }
    return Comparison(model, **models | changes)


def numbers_of(value: Any) -> list[float]:
    """Return all numbers in nested lists and mappings; every other value must be None."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers_of(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers_of(item)]
    assert value is None or (isinstance(value, int | float) and not isinstance(value, bool)), value
    return [] if value is None else [value]


# ---------------------------------------------------------------- models with a known answer


@pytest.mark.parametrize("kind", KINDS)
def test_model_not_trained_on_the_forget_set_matches_the_oracle(kind: TaskKind) -> None:
    found, _ = measure(compare(predict(2, kind), kind), kind, QUICK)
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
def test_interval_of_the_gap_closure_of_three_models(kind: TaskKind) -> None:
    compared = compare(predict(2, kind), kind)
    assert compared.original is not None
    assert compared.oracle is not None
    found, _ = measure(compared, kind, QUICK)
    original, unlearned, oracle = (of["forget"] for of in (compared.original, compared.model, compared.oracle))
    interval = gap_closure_interval(found["gap_closure"], original, unlearned, oracle, kind, QUICK)
    assert interval == pytest.approx(found["intervals"]["gap_closure"])
    assert gap_closure_interval(math.nan, oracle, unlearned, oracle, kind, QUICK) is None


@pytest.mark.parametrize("kind", KINDS)
def test_doing_nothing_closes_no_gap(kind: TaskKind) -> None:
    original, oracle = predict(0, kind, forget=4.0), predict(1, kind)
    found, _ = measure(compare(original, kind, original=original, oracle=oracle), kind, QUICK)
    assert found["gap_closure"] == 0
    assert found["intervals"]["gap_closure"] is None  # it holds by definition
    product = 1.0
    for name in COMPARED:
        scores = []
        for predictions in (original[name], oracle[name]):
            if kind == "multi_label":
                scores.append(average_precision_score(predictions.labels.numpy(), predictions.logits.numpy(), average="macro"))
            else:
                scores.append(accuracy_score(predictions.labels.numpy(), predictions.logits.argmax(1).numpy()))
        assert found[name][found["score"]] == pytest.approx(100 * scores[0], abs=1e-4)
        product *= 1 - abs(scores[0] - scores[1])
    assert found["tow"] == pytest.approx(100 * product, abs=1e-3)
    loss = found["attacks"]["loss"]
    truth = [1] * len(original["forget"].losses) + [0] * len(original["test"].losses)
    expected = roc_auc_score(truth, (-torch.cat([original["forget"].losses, original["test"].losses])).numpy())
    assert loss["auc"] == pytest.approx(expected, abs=1e-9)
    assert loss["auc"] > 0.8
    assert loss["interval"][0] > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_forgetting_too_much_is_detected(kind: TaskKind) -> None:
    plain = predict(2, kind)
    inverted = with_logits(plain, kind, forget=-2 * plain["forget"].logits)
    assert inverted["forget"].losses.mean() > 3 * plain["forget"].losses.mean()
    found, curves = measure(compare(inverted, kind), kind, QUICK)
    for name in ("loss", "rmia_two_sided"):
        attack = found["attacks"][name]
        assert attack["auc"] < 0.2
        assert attack["auc_either_way"] > 0.8
        assert attack["interval"][1] < 0.5
        assert attack["tpr"]["0.1"] > 0.3  # in the direction that reveals members
        curve = curves["roc"][name]
        area = sum(
            (b - a) * (c + d) / 2 for a, b, c, d in zip(curve["fpr"], curve["fpr"][1:], curve["tpr"], curve["tpr"][1:], strict=False)
        )
        assert area > 0.8  # the curve has the same direction
    assert found["attacks"]["rmia"]["auc"] < 0.5
    assert found["attacks"][found["attacks"]["strongest"]]["auc_either_way"] > 0.8
    assert found["gap_closure"] > 1
    assert found["to_oracle"]["forget"]["loss_gap"] > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_oracle_compared_with_itself(kind: TaskKind) -> None:
    oracle = predict(1, kind)
    found, _ = measure(compare(oracle, kind, oracle=oracle), kind, QUICK)
    assert found["tow"] == 100
    assert found["intervals"]["tow"] is None
    assert found["gap_closure"] == 1
    for name in EVALUATED:
        assert found["to_oracle"][name] == {"jensen_shannon": pytest.approx(0, abs=1e-15), "loss_gap": 0, "largest_loss_gap": 0}
    floor = found["noise_floor"]
    other = measure(compare(predict(3, kind), kind, oracle=oracle, oracles=[], references=[]), kind, QUICK)[0]
    for name in EVALUATED:  # the floor is another oracle, measured as any model is
        assert floor[name] == pytest.approx(abs(other[name][found["score"]] - found[name][found["score"]]), abs=1e-9)
    assert floor["tow"] == pytest.approx(other["tow"], abs=1e-9)
    assert floor["gap_closure"] == pytest.approx(abs(other["gap_closure"] - 1), abs=1e-9)
    assert floor["jensen_shannon"] == pytest.approx(other["to_oracle"]["forget"]["jensen_shannon"], abs=1e-12)


# ---------------------------------------------------------------- missing models


def test_one_forget_person() -> None:
    one: dict[str, Any] = {"forget_size": (1, 6), "support_size": (1, 1)}
    other = predict(3, **one)
    comparison = Comparison(predict(2, **one), predict(0, forget=4.0, **one), predict(1, **one), [other], [other])
    found, curves = measure(comparison, "multi_label", QUICK)
    assert found["intervals"]["forget"] == {"map": None, "loss": None}
    assert found["intervals"]["gap_closure"] is None
    assert found["intervals"]["tow"] is None
    assert found["intervals"]["test"]["map"] is not None
    assert "logistic" not in found["attacks"]
    assert found["attacks"]["loss"]["interval"] is None
    assert found["attacks"]["loss"]["auc_either_way"] is None
    assert 0 <= found["attacks"]["loss"]["auc"] <= 1
    assert found["attacks"]["strongest"] in ("loss", "rmia", "rmia_two_sided", "iam")
    assert found["probe"] is None
    assert "With one person in the forget set there are no intervals." in found["cannot_tell"]
    assert len(curves["people"]) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("everywhere", [True, False])
def test_nan_logits_give_null_and_are_not_hidden(kind: TaskKind, everywhere: bool) -> None:
    plain = predict(2, kind)
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
    assert found["attacks"][found["attacks"]["strongest"]]["auc"] is None  # another attack's number does not hide it
    assert "loss" not in curves["roc"]
    assert (found["test"]["loss"] is None) == everywhere
    assert sum(curves["losses"]["after"]["forget"]) == len(plain["forget"].losses)
    assert len(curves["people"]) == SIZES["forget"][0]


def test_without_an_oracle() -> None:
    found, curves = measure(compare(predict(2), oracle=None, oracles=[], references=[]), "multi_label", QUICK)
    assert [found[name] for name in ("tow", "gap_closure", "to_oracle", "noise_floor")] == [None] * 4
    assert [found["intervals"][name] for name in ("tow", "gap_closure")] == [None, None]
    assert any(sentence.startswith("Without an oracle") for sentence in found["cannot_tell"])
    assert all(person["oracle"] is None and person["original"] is not None for person in curves["people"])


def test_without_an_original() -> None:
    found, curves = measure(compare(predict(2), original=None), "multi_label", QUICK)
    assert found["tow"] is not None
    assert found["gap_closure"] is None
    assert found["intervals"]["gap_closure"] is None
    assert "gap_closure" not in found["noise_floor"]
    assert curves["losses"]["before"] is None
    means = [person["model"] for person in curves["people"]]
    assert means == sorted(means)
    assert all(person["original"] is None for person in curves["people"])


def test_without_references() -> None:
    found, curves = measure(compare(predict(2), oracles=[], references=[]), "multi_label", QUICK)
    assert set(found["attacks"]) == {"loss", "logistic", "strongest"}
    assert set(curves["roc"]) == {"loss", "logistic"}
    assert found["noise_floor"] is None
    assert any(sentence.startswith("RMIA, IAM and the range attack were not run") for sentence in found["cannot_tell"])
    alone, _ = measure(Comparison(predict(2)), "multi_label", QUICK)
    for name in (*PREDICTED, "probe"):
        assert alone[name] == found[name]
    assert alone["attacks"] == found["attacks"]


def test_u_lira_needs_two_oracles_besides_the_model() -> None:
    oracle, others = predict(1), [predict(3), predict(4)]

    def attacks(model: PredictionsBySet, oracles: list[PredictionsBySet]) -> dict[str, Any]:
        found: dict[str, Any] = measure(compare(model, oracle=oracle, oracles=oracles, references=oracles), "multi_label", QUICK)[0][
            "attacks"
        ]
        return found

    assert "u_lira" not in attacks(predict(2), [])
    assert attacks(predict(2), others[:1])["u_lira"]["interval"] is None  # has no formula
    assert "u_lira" not in attacks(oracle, others[:1])  # only one other oracle remains
    assert attacks(oracle, others)["u_lira"]["auc"] == pytest.approx(0.5, abs=0.2)
    assert attacks(predict(2, forget=6.0), others)["u_lira"]["auc"] > 0.8


def test_number_of_unseen_photos_limits_the_fpr() -> None:
    found, _ = measure(compare(predict(2)), "multi_label", QUICK)
    nonmembers = SIZES["test"][0] * SIZES["test"][1]
    loss = found["attacks"]["loss"]
    assert loss["smallest_fpr"] == 1 / nonmembers
    assert (loss["tpr"]["0.1"] is None, loss["tpr"]["0.01"] is None, loss["tpr"]["0.001"] is None) == (False, False, True)
    assert any("150 photos of 25 unseen identities (test) do not resolve" in one and "at FPR 0.001." in one for one in found["cannot_tell"])


def test_rmia_uses_every_version_and_the_given_settings() -> None:
    comparison = compare(predict(2, forget=2.0), oracle=None)
    plain = measure(comparison, "multi_label", QUICK)[0]["attacks"]
    once = {name: replace(predictions, views=()) for name, predictions in comparison.model.items()}
    reference = {name: replace(predictions, views=()) for name, predictions in comparison.references[0].items()}
    fewer = measure(replace(comparison, model=once, oracles=[reference], references=[reference]), "multi_label", QUICK)[0]["attacks"]
    for other in (
        fewer,
        *(measure(comparison, "multi_label", replace(QUICK, **more))[0]["attacks"] for more in ({"rmia_a": 1.0}, {"rmia_gamma": 1.1})),
    ):
        assert other["rmia"]["auc"] != plain["rmia"]["auc"]
        assert other["loss"] == plain["loss"]


def test_probe_identifies_people_by_their_features() -> None:
    model = predict(2)
    forget = model["forget"]
    people, person_index = forget.identities.unique(return_inverse=True)
    one_hot = torch.nn.functional.one_hot(person_index, len(people)).float()
    found = measure(Comparison(dict(model) | {"forget": replace(forget, features=one_hot)}), "multi_label", QUICK)[0]["probe"]
    assert found == {"accuracy": 100, "balanced_accuracy": 100, "chance": pytest.approx(10), "people": 10, "photos": 30}
    assert measure(Comparison(model), "multi_label", QUICK)[0]["probe"]["balanced_accuracy"] < 60
    assert measure(Comparison(dict(model) | {"forget": replace(forget, features=None)}), "multi_label", QUICK)[0]["probe"] is None


# ---------------------------------------------------------------- intervals, bytes, curves


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_are_ordered_and_contain_their_number(kind: TaskKind) -> None:
    found, _ = measure(compare(predict(2, kind, forget=1.5), kind), kind, Settings(resamples=400))
    ends = found["intervals"]
    assert (ends["level"], ends["resamples"]) == (0.95, 400)
    pairs = [(found[name][key], ends[name][key]) for name in EVALUATED for key in (found["score"], "loss")]
    pairs += [(found[name], ends[name]) for name in ("tow", "gap_closure")]
    pairs += [
        (attack["auc"], attack["interval"]) for attack in found["attacks"].values() if isinstance(attack, dict) and attack["interval"]
    ]
    assert len(pairs) == 8 + 2 + 5
    for value, (low, high) in pairs:
        assert low <= value <= high
        assert low < high
    for name in EVALUATED:
        assert 0 <= ends[name][found["score"]][0] <= ends[name][found["score"]][1] <= 100
    assert ends["tow"][1] <= 100
    narrow = measure(compare(predict(2, kind, forget=1.5), kind), kind, Settings(resamples=400, level=0.5))[0]["intervals"]
    assert narrow["test"]["loss"][1] - narrow["test"]["loss"][0] < ends["test"]["loss"][1] - ends["test"]["loss"][0]


@pytest.mark.parametrize("kind", KINDS)
def test_same_predictions_give_the_same_bytes_for_any_global_rng_state(kind: TaskKind) -> None:
    def once(seed: int, settings: Settings = QUICK) -> bytes:
        torch.manual_seed(seed)
        return dump_json(measure(compare(predict(2, kind), kind), kind, settings))

    first = once(0)
    before = torch.random.get_rng_state()
    assert once(1) == first
    torch.manual_seed(0)
    assert torch.equal(before, torch.random.get_rng_state())  # the global state is not used
    assert once(0, replace(QUICK, seed=1)) != first


@pytest.mark.parametrize("kind", KINDS)
def test_curves_match_the_predictions(kind: TaskKind) -> None:
    comparison = compare(predict(2, kind), kind)
    found, curves = measure(comparison, kind, QUICK)
    numbers_of(curves)
    assert set(curves) == {"people", "losses", "roc"}
    forget, test = comparison.model["forget"], comparison.model["test"]
    for when in ("before", "after"):
        counts = curves["losses"][when]
        assert [sum(counts[name]) for name in ATTACKED] == [len(forget.losses), len(test.losses)]
        assert {len(counts[name]) for name in counts} == {len(curves["losses"]["edges"]) - 1}
    edges = torch.tensor(curves["losses"]["edges"], dtype=torch.float64)
    inside = test.losses[test.losses < edges[-1]].double()
    expected = torch.histogram(inside, edges).hist.tolist()
    assert curves["losses"]["after"]["test"][:-1] == expected[:-1]  # the last bin also contains larger losses
    assert curves["losses"]["edges"] == sorted(curves["losses"]["edges"])

    people = curves["people"]
    assert len(people) == SIZES["forget"][0]
    originals = [person["original"] for person in people]
    assert originals == sorted(originals)
    for which, model in (("original", comparison.original), ("model", comparison.model), ("oracle", comparison.oracle)):
        assert model
        means = [model["forget"].losses[forget.identities == person].double().mean().item() for person in forget.identities.unique()]
        assert sorted(person[which] for person in people) == pytest.approx(sorted(means), abs=1e-6)
    first = min(forget.identities.unique().tolist(), key=lambda p: comparison.original["forget"].losses[forget.identities == p].mean())  # type: ignore[index]
    assert people[0]["model"] == pytest.approx(forget.losses[forget.identities == first].mean().item(), abs=1e-6)

    assert set(curves["roc"]) == {"loss", "logistic", "rmia", "rmia_two_sided", "iam"}
    for name, curve in curves["roc"].items():
        assert (curve["members"], curve["nonmembers"]) == (len(forget.losses), len(test.losses))
        assert (curve["fpr"][0], curve["tpr"][0], curve["fpr"][-1], curve["tpr"][-1]) == (0, 0, 1, 1)
        assert curve["fpr"] == sorted(curve["fpr"])
        assert curve["tpr"] == sorted(curve["tpr"])
        assert curve["smallest_fpr"] == found["attacks"][name]["smallest_fpr"]


def test_curve_of_many_photos_is_thinned_and_keeps_its_ends() -> None:
    found, curves = measure(Comparison(predict(2, test_size=(100, 12))), "multi_label", Settings(resamples=100))
    curve = curves["roc"]["loss"]
    assert len(curve["fpr"]) == len(curve["tpr"]) <= 512
    assert (curve["fpr"][0], curve["tpr"][0], curve["fpr"][-1], curve["tpr"][-1]) == (0, 0, 1, 1)
    area = sum((b - a) * (c + d) / 2 for a, b, c, d in zip(curve["fpr"], curve["fpr"][1:], curve["tpr"], curve["tpr"][1:], strict=False))
    assert max(area, 1 - area) == pytest.approx(max(found["attacks"]["loss"]["auc"], 1 - found["attacks"]["loss"]["auc"]), abs=0.01)


def test_u_lira_is_not_the_strongest_attack_where_it_cannot_run_on_the_oracle() -> None:
    kind: TaskKind = "multi_label"
    original, oracle, other, third = (
        predict(0, kind, forget=4.0),
        predict(1, kind),
        predict(2, kind),
        predict(3, kind),
    )
    for oracles in ([other], [other, third]):
        found, _ = measure(Comparison(model=original, original=original, oracle=oracle, oracles=oracles, references=oracles), kind, QUICK)
        assert "u_lira" in found["attacks"]
        stated = any("U-LiRA is not considered" in sentence for sentence in found["cannot_tell"])
        assert stated == (len(oracles) == 1)
        assert found["attacks"]["strongest"] != "u_lira" or len(oracles) == 2


def test_gap_within_the_noise_floor_has_no_closure() -> None:
    kind: TaskKind = "multi_label"
    original, oracle, other = predict(1, kind), predict(1, kind), predict(2, kind)
    found, _ = measure(
        Comparison(model=predict(3, kind), original=original, oracle=oracle, oracles=[other], references=[other]), kind, QUICK
    )
    assert found["gap_closure"] is None
    assert "Original and oracle differ on forget by no more than the noise floor: there is no gap to close." in found["cannot_tell"]


def with_forget_labels(compared: Comparison, labels: torch.Tensor) -> Comparison:
    """Return a comparison in which the forget photos have other labels, for every model."""

    def change(model: PredictionsBySet) -> PredictionsBySet:
        forget = model["forget"]
        return dict(model) | {"forget": replace(forget, labels=labels, losses=losses(forget.logits, labels, "multi_label"))}

    assert compared.original and compared.oracle
    return Comparison(
        change(compared.model),
        change(compared.original),
        change(compared.oracle),
        [change(other) for other in compared.oracles],
        [change(other) for other in compared.references],
    )


def test_label_that_is_positive_on_every_photo_changes_scores_by_the_published_formula() -> None:
    """docs/metrics.md: (K * old - 100 * c) / (K - c), and the same gap closure; the same holds for the noise floor's score."""
    plain = compare(predict(2, forget=2.0))
    labels = plain.model["forget"].labels.clone()
    labels[:, 1] = 1
    compared = with_forget_labels(plain, labels)
    found, _ = measure(compared, "multi_label", QUICK)
    assert found["forget"]["labels_left_out"] == 1

    def old(model: PredictionsBySet) -> float:
        scores = [average_precision_score(labels[:, k].numpy(), model["forget"].logits[:, k].numpy()) for k in range(LABELS)]
        return 100 * sum(scores) / LABELS

    assert compared.original and compared.oracle
    model, original, oracle = map(old, (compared.model, compared.original, compared.oracle))
    assert found["forget"]["map"] == pytest.approx((LABELS * model - 100) / (LABELS - 1), abs=1e-9)
    assert found["gap_closure"] == pytest.approx((original - model) / (original - oracle), abs=1e-9)
    low, high = found["intervals"]["forget"]["map"]
    assert low < found["forget"]["map"] < high <= 100
    assert any("are the same on every photo" in sentence for sentence in found["cannot_tell"])


@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_set_on_which_no_label_varies_has_no_score(constant: float) -> None:
    plain = compare(predict(2, forget=2.0))
    found, curves = measure(with_forget_labels(plain, torch.full_like(plain.model["forget"].labels, constant)), "multi_label", QUICK)
    assert found["forget"]["map"] is None
    assert found["forget"]["balanced_accuracy"] is None
    assert found["forget"]["labels_left_out"] == LABELS
    assert found["intervals"]["forget"]["map"] is None
    assert [found[name] for name in ("tow", "gap_closure")] == [None, None]
    assert [found["intervals"][name] for name in ("tow", "gap_closure")] == [None, None]
    assert found["noise_floor"]["forget"] is None
    assert found["noise_floor"]["retain"] is not None
    assert found["test"]["map"] is not None
    assert found["attacks"]["loss"]["auc"] is not None
    assert "No attribute varies over the photos of forget, so mAP and what depends on it are unknown there." in found["cannot_tell"]
    assert not any("no gap to close" in sentence for sentence in found["cannot_tell"])
    json.dumps([found, curves], allow_nan=False)
