"""What a published `metrics.json` has of bystanders and the collapse alarm, and how a card shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oneshui_hf.card import model_card
from oneshui_hf.metrics.collapse import EXPLANATION
from oneshui_hf.metrics.schema import read_metrics
from oneshui_hf.runs import Record, write_json
from oneshui_hf.stages.publishing.redaction import public_metrics
from support.report_rows import metrics

CANARY = "jane"  # a plain word, which could be a key


def plant(value: Any) -> Any:
    """Return a JSON value with a private key and a private text in every object."""
    if isinstance(value, dict):
        return {key: plant(item) for key, item in value.items()} | {CANARY: 1.0, "name": CANARY}
    return [plant(item) for item in value] if isinstance(value, list) else value


def test_numbers_are_published_without_names_and_without_the_value_of_one_person() -> None:
    found = public_metrics(metrics(0, 1.0))
    assert found["collapse"] == metrics(0, 1.0)["collapse"]
    measured, sent = (of["bystanders"] for of in (metrics(0, 1.0), found))
    assert sent["groups"]["left_out"] == 3
    assert sent["groups"]["retain"][0] == {key: value for key, value in measured["groups"]["retain"][0].items() if key != "name"}
    for of_set, of_sent in ((measured["retain"], sent["retain"]), (measured["oracle"]["test"], sent["oracle"]["test"])):
        assert of_sent["loss_change"] == {key: value for key, value in of_set["loss_change"].items() if key != "largest"}
        assert {key: of_sent[key] for key in ("people", "beyond_spread")} == {key: of_set[key] for key in ("people", "beyond_spread")}
    assert "Male" not in json.dumps(found)


def test_unlisted_keys_are_not_published() -> None:
    planted = {part: plant(metrics(0, 1.0)[part]) for part in ("collapse", "bystanders")}
    assert json.dumps(planted).count(CANARY) > 30
    found = public_metrics(metrics(0, 1.0) | planted)
    assert CANARY not in json.dumps(found)
    assert found == public_metrics(metrics(0, 1.0))


def test_metrics_of_earlier_versions_have_neither() -> None:
    older = {name: value for name, value in metrics(0, 1.0).items() if name not in ("collapse", "bystanders")}
    assert not {"collapse", "bystanders"} & public_metrics(older).keys()
    unknown = public_metrics(older | {"collapse": None, "bystanders": None})
    assert (unknown["collapse"], unknown["bystanders"]) == (None, None)


def test_published_metrics_can_be_read(tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", public_metrics(metrics(0, 2.0)))
    assert read_metrics(tmp_path)["collapse"]["collapsed"] is True


@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_card_marks_a_collapsed_model(strength: float) -> None:
    record = Record(
        kind="unlearned", seed=0, options={}, dataset={"name": "synthetic", "task": "multi_label", "labels": ["a"]}, weights="0" * 64
    )
    card = model_card(record, {"model_type": "vit"}, json.loads(json.dumps(public_metrics(metrics(0, strength)))))
    marked = [line.split("|")[1].strip() for line in card.splitlines() if line.startswith("|") and "‡" in line]
    expected = ["retain‡", "test‡", "loss‡ (strongest)", "logistic‡", "rmia‡", "rmia-two-sided‡"] if strength > 1 else []
    assert [label.replace(" (strongest)", "") for label in sorted(marked)] == sorted(
        label.replace(" (strongest)", "") for label in expected
    )
    assert card.count(EXPLANATION) == bool(expected)
    assert "\n\n\n" not in card
