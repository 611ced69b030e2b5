"""The cards: their headers obey the rules of the Hub, for every kind of card that the project writes."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from oneshui_hf.card import data_card, model_card
from oneshui_hf.runs import Record
from support.card_rules import header, problems
from support.pages import ROOT

SETS = ("retain", "forget", "val", "test")


def a_record(kind: Any, task: str, model: str = "google/vit-base-patch16-224-in21k") -> Record:
    report = {"method": "gradient-ascent", "photos": 2, "people": 2, "seconds": 1.5, "method_options": {"lr": 0.1}}
    dataset = {"name": "a private data set", "task": task, "labels": ["a", "b", "c"], "images": 60, "identities": 9}
    options = {"model": model, "dataset": "a private data set"}
    return Record(kind, 3, options, dataset, weights="a" * 64, report=report if kind == "unlearned" else {})


def some_metrics(score: str) -> dict[str, Any]:
    return {**{name: {"images": 9, "people": 3, "loss": 0.5, score: 71.25} for name in SETS}, "tow": 93.5, "gap_closure": 0.25}


ALL = list(itertools.product(("original", "oracle", "unlearned"), ("map", "accuracy"), (True, False), (True, False)))


@pytest.mark.parametrize(("kind", "score", "measured", "named"), ALL)
def test_header_of_a_model_card_obeys_the_rules_of_the_hub(kind: Any, score: str, measured: bool, named: bool, tmp_path: Path) -> None:
    task = "multi_label" if score == "map" else "single_label"
    sources: dict[str, Any] = {"dataset_id": "flwrlabs/celeba", "license": "cc-by-nc-4.0", "tags": ("faces", "study:1")} if named else {}
    sources |= {"original": "owner/original"} if named and kind == "unlearned" else {}
    card = model_card(a_record(kind, task), {"model_type": "vit"}, some_metrics(score) if measured else {}, "owner/name", **sources)
    assert problems(card) == []
    found = header(card)
    assert found["license"] == ("cc-by-nc-4.0" if named else "unknown")
    assert found.get("datasets") == (["flwrlabs/celeba"] if named else None)
    assert found.get("metrics") == ([score] if measured else None)
    assert found["base_model"] == sources.get("original", "google/vit-base-patch16-224-in21k")
    assert {"oneshui", kind, "arxiv:2407.12069", *sources.get("tags", ())} <= set(found["tags"])
    results = [result for model in found.get("model-index", []) for result in model["results"]]
    assert {result["dataset"]["type"] for result in results} <= {"flwrlabs/celeba" if named else "a-private-data-set"}
    assert ("flwrlabs/celeba" in card) == named
    # The client reads the same from it.
    (tmp_path / "README.md").write_text(card)
    assert ModelCard.load(tmp_path / "README.md").data.to_dict() == found


@pytest.mark.parametrize("named", [True, False])
def test_header_of_a_data_card_obeys_the_rules_of_the_hub(named: bool) -> None:
    from oneshui_hf.data.load import load_faces

    card = data_card(load_faces("synthetic"), "owner/people", names_kept=named, left_out=2)
    assert problems(card) == []
    assert header(card)["license"] == "unknown"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("request", "2 photos of 2 people, given with the request; no training photo was read."),
        ("split", "2 photos of 2 people, the support images of the data set's own split."),
        (None, "2 photos of 2 people. It took 1.5 seconds."),
    ],
)
def test_a_card_states_where_the_support_images_are_from(source: str | None, sentence: str) -> None:
    record = a_record("unlearned", "multi_label")
    record.report |= {"source": source} if source else {}
    assert sentence in " ".join(model_card(record, {"model_type": "vit"}, {}).split())


def test_a_model_without_a_pretrained_backbone_names_none() -> None:
    card = model_card(a_record("original", "multi_label", "tiny"), {"model_type": "vit"}, {})
    assert "base_model" not in header(card)


def test_citation_of_a_card_is_that_of_the_software() -> None:
    card = model_card(a_record("original", "multi_label"), {"model_type": "vit"}, {})
    [paper] = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    citation = re.search(r"```bibtex\n(.*?)```", card, re.DOTALL)
    assert citation
    assert paper["title"] in citation[1]
    assert paper["url"] in citation[1]
    assert all(author["family-names"].split()[-1][:6] in citation[1] for author in paper["authors"])


WRONG: dict[str, dict[str, Any]] = {
    "no list of texts": {"tags": "oneshui"},
    "no identifier": {"license": "Apache 2.0"},
    "names no repository": {"datasets": ["my data"]},
    "base_model names": {"base_model": "/home/somebody/model"},
    "is unknown": {"base_model_relation": "copy"},
    "the task faces": {"pipeline_tag": "faces"},
    "the metric mean AP": {"metrics": ["mean AP"]},
    "given twice": {"tags": ["a", "a"]},
    "is empty": {"datasets": []},
    "no number": {
        "model-index": [{"name": "a", "results": [{"task": {"type": "image-classification"}, "metrics": [{"type": "map", "value": "x"}]}]}]
    },
    "no type without spaces": {
        "model-index": [{"name": "a", "results": [{"task": {"type": "image-classification"}, "dataset": {"name": "a b", "type": "a b"}}]}]
    },
}


@pytest.mark.parametrize(("reason", "changes"), WRONG.items(), ids=list(WRONG))
def test_rules_find_a_wrong_header(reason: str, changes: dict[str, Any]) -> None:
    right = {"license": "mit", "tags": ["a"], "pipeline_tag": "image-classification"}
    assert problems(f"---\n{yaml.safe_dump(right)}---\ntext") == []
    assert any(reason in problem for problem in problems(f"---\n{yaml.safe_dump(right | changes)}---\ntext"))
