"""metrics.json: what is measured is accepted, and other types are refused before they are shown or published."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from oneshui_hf.data.schema import TaskKind
from oneshui_hf.errors import OneshuiError
from oneshui_hf.metrics.comparison import Comparison, Predictions, PredictionsBySet, Settings
from oneshui_hf.metrics.measure import measure
from oneshui_hf.metrics.schema import MeasuredMetrics, StoredMetrics, read_metrics
from oneshui_hf.models.outputs import losses
from oneshui_hf.runs import with_checksum, write_json
from oneshui_hf.sets import ATTACKED, PREDICTED


def predict(seed: int, kind: TaskKind, people: int = 6, constant: bool = False) -> PredictionsBySet:
    """Return random predictions of a model; photos, labels and people are the same for all seeds."""
    predictions = {}
    for number, name in enumerate(PREDICTED):
        of_photos, of_model = (torch.Generator().manual_seed(100 * number + of) for of in (0, seed + 1))
        identities = 10 * number + torch.arange(people).repeat_interleave(4)
        shape = (len(identities), 3)
        labels = (torch.rand(shape, generator=of_photos) < 0.5).float() if kind == "multi_label" else torch.arange(len(identities)) % 3
        labels = torch.ones_like(labels) if constant else labels
        logits, features = torch.randn(shape, generator=of_model), torch.randn(shape, generator=of_model)
        views = (logits + 0.1,) if name in ATTACKED else ()
        predictions[name] = Predictions(logits, labels, losses(logits, labels, kind), identities, features, views)
    return predictions


def measured(kind: TaskKind, oracles: int = 0, **of_photos: Any) -> dict[str, Any]:
    model, original, oracle, *others = (predict(seed, kind, **of_photos) for seed in range(3 + oracles))
    compared = Comparison(model, original, oracle, oracles=others, references=others) if oracles else Comparison(model)
    metrics, _ = measure(compared, kind, Settings(resamples=100))
    return json.loads(json.dumps(metrics)) | {"relearning": None}


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
@pytest.mark.parametrize("oracles", [0, 1, 2])
@pytest.mark.parametrize("of_photos", [{}, {"people": 1}, {"constant": True}], ids=str)
def test_all_that_is_measured_is_accepted(tmp_path: Path, kind: TaskKind, oracles: int, of_photos: dict[str, Any]) -> None:
    metrics = measured(kind, oracles, **of_photos)
    write_json(tmp_path / "metrics.json", metrics)
    assert read_metrics(tmp_path) == read_metrics(tmp_path, MeasuredMetrics) == metrics


@pytest.mark.parametrize(
    ("place", "values"),
    [
        ("score", (5, "x", [])),
        *((name, (5, "x", [], {"map": "x"}, {"images": -1})) for name in ("retain", "forget", "val", "test")),
        ("tow", ("x", [], {}, True)),
        ("gap_closure", ("x", [])),
        ("noise_floor", (5, "x", {"retain": "x"})),
        ("intervals", (5, "x", {"tow": "x"}, {"retain": {"map": [1, 2, 3]}})),
        ("to_oracle", (5, [])),
        ("attacks", (5, [], {"loss": 5}, {"loss": {"auc": "x"}}, {"strongest": 5}, {"loss": {"tpr": [1]}})),
        ("probe", (5, [])),
        ("relearning", (5, [], {"steps": "x"})),
        ("cannot_tell", (5, "x", [5], [[]])),
        ("compared_with", (5, "x", [], {"original": 5})),
    ],
)
def test_field_of_another_type_is_one_sentence(tmp_path: Path, place: str, values: tuple[Any, ...]) -> None:
    metrics = measured("multi_label", 1)
    for value in values:
        write_json(tmp_path / "metrics.json", metrics | {place: value})
        for schema in (StoredMetrics, MeasuredMetrics):
            if place == "compared_with" and schema is MeasuredMetrics:
                continue
            with pytest.raises(OneshuiError, match=f"'{place}"):
                read_metrics(tmp_path, schema)


def test_stored_metrics_may_lack_what_is_not_published_and_measured_ones_may_not(tmp_path: Path) -> None:
    metrics = measured("multi_label", 1)
    for place in (
        "score",
        "retain",
        "tow",
        "intervals",
        "attacks",
        "attacks.loss.tpr",
        "retain.map",
        "intervals.forget.map",
        "forget.loss",
    ):
        changed = copy.deepcopy(metrics)
        *outer, last = place.split(".")
        within = changed
        for key in outer:
            within = within[key]
        del within[last]
        write_json(tmp_path / "metrics.json", changed)
        assert read_metrics(tmp_path) == changed
        with pytest.raises(OneshuiError):
            read_metrics(tmp_path, MeasuredMetrics)


def test_metrics_that_were_edited_are_refused(tmp_path: Path) -> None:
    metrics = with_checksum(measured("multi_label"))
    write_json(tmp_path / "metrics.json", metrics)
    assert read_metrics(tmp_path) == metrics
    metrics["forget"]["map"] = 1.0
    write_json(tmp_path / "metrics.json", metrics)
    with pytest.raises(OneshuiError, match="has changed since it was written; run `oneshui evaluate` again"):
        read_metrics(tmp_path)
