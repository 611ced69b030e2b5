"""The entries `difference` and `person_level` of metrics.json, on predictions with a known answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from oneshui_hf.data.schema import TaskKind
from oneshui_hf.metrics.attack_scores import auc
from oneshui_hf.metrics.attack_suite import run_person_level
from oneshui_hf.metrics.attacks import output_difference
from oneshui_hf.metrics.comparison import CANDIDATES, Comparison, NotRun, Predictions, PredictionsBySet, Settings, WeightEnergies
from oneshui_hf.metrics.difference import difference, difference_limitations
from oneshui_hf.models.outputs import losses
from support.attack_data import labels_of, normal, rng

KINDS: tuple[TaskKind, ...] = ("multi_label", "single_label")
SIZES = {"retain": (20, 6), "forget": (8, 6), "val": (12, 6), "test": (20, 6)}  # people, photos per person
QUICK = Settings(resamples=200)


def predict(seed: int, kind: TaskKind, forget: float = 1.0, noise: float = 1.0) -> PredictionsBySet:
    """Return predictions: correct by a margin, which is `forget` on the forget set, plus noise. The support photos are of its people."""
    found = {}
    for number, (name, (people, photos)) in enumerate(SIZES.items()):
        identities = 100 * number + torch.arange(people).repeat_interleave(photos)
        found[name] = _predictions(seed, number, kind, identities, forget if name == "forget" else 1.0, noise)
    found["support"] = _predictions(seed, 9, kind, 100 + torch.arange(SIZES["forget"][0]), 1.0, noise)
    return found


def _predictions(seed: int, number: int, kind: TaskKind, identities: torch.Tensor, margin: float, noise: float) -> Predictions:
    photos_rng, model_rng = rng(1000 * number), rng(1000 * number + seed + 1)
    labels = labels_of(kind, len(identities), 5, photos_rng)
    towards = 2 * labels - 1 if kind == "multi_label" else torch.nn.functional.one_hot(labels, 5).float()
    logits = margin * towards + (normal(photos_rng, *towards.shape) + noise * normal(model_rng, *towards.shape)).float()
    return Predictions(logits, labels, losses(logits, labels, kind), identities)


def with_logits(model: PredictionsBySet, kind: TaskKind, name: str, logits: torch.Tensor) -> PredictionsBySet:
    changed = replace(model[name], logits=logits, losses=losses(logits, model[name].labels, kind))
    return dict(model) | {name: changed}


def only(model: PredictionsBySet, person: int) -> PredictionsBySet:
    """Return predictions with a single forgotten person."""
    changed = dict(model)
    for name in ("forget", "support"):
        keep, of = model[name].identities == person, model[name]
        changed[name] = Predictions(of.logits[keep], of.labels[keep], of.losses[keep], of.identities[keep])
    return changed


def measured(compared: Comparison, kind: TaskKind) -> dict[str, Any]:
    found = difference(compared, kind, QUICK)
    assert found is not None
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_differs_from_the_original_by_as_much_everywhere_is_chance(kind: TaskKind) -> None:
    found = measured(Comparison(predict(2, kind, noise=0.3), predict(0, kind, noise=0.3)), kind)
    for score in found["outputs"].values():
        for unit in ("photos", "people"):
            for others in ("retain", "test"):
                low, high = score[unit][others]["interval"]
                assert low < 0.5 < high
        low, high = score["owner"]["intervals"]["rank"]
        assert low < (score["owner"]["candidates"] + 1) / 2 < high
        assert score["owner"]["candidates"] == 41


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_rise_on_one_person_is_rank_1_for_that_person_only(kind: TaskKind) -> None:
    original = predict(0, kind)
    quiet = {name: replace(of, logits=of.logits + 0.01 * normal(rng(5), *of.logits.shape).float()) for name, of in original.items()}
    is_person = quiet["forget"].identities == 103
    model = with_logits(quiet, kind, "forget", torch.where(is_person[:, None], -1, 1) * quiet["forget"].logits)
    found = measured(Comparison(model, original), kind)["outputs"]["logit_distance"]
    assert found["owner"]["rank_1_share"] == pytest.approx(1 / 8, abs=0.13)
    assert found["photos"]["test"]["auc"] == pytest.approx(0.5 + 0.5 / 8, abs=0.1)  # one of eight people is above all others
    one = measured(Comparison(only(model, 103), only(original, 103)), kind)["outputs"]["logit_distance"]
    assert one["owner"]["rank"] == one["owner"]["photo_rank"] == 1
    assert one["owner"]["intervals"] == dict.fromkeys(one["owner"]["intervals"])  # one person has no interval
    assert one["photos"]["retain"] == {"auc": 1, "interval": None}


@pytest.mark.parametrize("kind", KINDS)
def test_forgetting_too_much_is_found_and_the_oracle_is_the_floor(kind: TaskKind) -> None:
    original, oracle = predict(0, kind, forget=4.0), predict(1, kind)
    model = with_logits(predict(2, kind), kind, "forget", -2 * predict(2, kind, forget=3.0)["forget"].logits)
    found = measured(Comparison(model, original, oracle), kind)
    own, floor = (of["outputs"]["loss_rise"] for of in (found, found["oracle"]))
    assert own["photos"]["test"]["auc"] > floor["photos"]["test"]["auc"] > 0.5
    assert own["owner"]["rank"] <= floor["owner"]["rank"]
    assert own["owner"]["batch_share"] == 1
    rise = [output_difference(model[n].logits, original[n].logits, model[n].labels, kind).loss_rise for n in ("forget", "test")]
    assert own["photos"]["test"]["auc"] == pytest.approx(auc(rise[0], rise[1]), abs=1e-12)
    itself = measured(Comparison(oracle, original, oracle), kind)
    assert itself["oracle"] == {name: itself[name] for name in ("outputs", "weights")}
    assert itself["outputs"] == found["oracle"]["outputs"]


def test_an_original_has_no_difference() -> None:
    original = predict(0, "multi_label")
    assert difference(Comparison(original, original), "multi_label", QUICK) is None
    assert difference(Comparison(original), "multi_label", QUICK) is None
    assert difference_limitations(Comparison(original, original)) == []
    assert "Without the original" in difference_limitations(Comparison(original))[0]


def test_energies_are_scored_like_outputs_and_a_reason_replaces_them() -> None:
    model, original = predict(1, "multi_label"), predict(0, "multi_label")
    sets = torch.cat([torch.full((len(model[name].labels),), number) for number, name in enumerate(CANDIDATES)])
    identities = torch.cat([model[name].identities for name in CANDIDATES])
    leak = normal(rng(0), len(sets)) + 6 * torch.isin(sets, torch.tensor([1, 3]))
    energies = WeightEnergies({"a": leak, "b": normal(rng(1), len(sets))}, sets, identities, 17)
    found = measured(Comparison(model, original, weight_energies=energies), "multi_label")["weights"]
    assert (found["layers"], found["numbers_left_out"], found["owner"]["rank"], found["owner"]["batch_share"]) == (2, 17, 1, 1)
    assert found["owner"]["support_rank"] < 7  # of 41
    missing = Comparison(model, original, weight_energies=NotRun("the weights are gone"))
    assert measured(missing, "multi_label")["weights"] is None
    assert difference_limitations(missing) == ["The attack on the weight difference of this model was not run: the weights are gone."]


@pytest.mark.parametrize("kind", KINDS)
def test_range_attack_finds_memorised_people_and_not_forgotten_ones(kind: TaskKind) -> None:
    references = [predict(3, kind)]
    memorised, forgotten = (run_person_level(predict(2, kind, forget=margin), references, kind, QUICK) for margin in (5.0, 1.0))
    assert memorised is not None
    assert forgotten is not None
    assert (memorised["people"], memorised["unseen_people"]) == (8, 20)
    assert memorised["auc"] > 0.95
    low, high = forgotten["interval"]
    assert low < 0.5 < high
    assert run_person_level(predict(2, kind), [], kind, QUICK) is None
