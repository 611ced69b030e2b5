"""The types of a record, all of which are checked when a run is opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oneshui_hf.errors import OneshuiError
from oneshui_hf.runs import Run

RECORD: dict[str, Any] = {
    "format": 1,
    "kind": "original",
    "seed": 3,
    "options": {"lr": 1e-4, "dataset": "synthetic"},
    "dataset": {"name": "made", "task": "multi_label", "labels": ["a", "b"], "images": 20, "identities": 4},
    "report": {
        "history": [{"epoch": 1, "train_loss": 0.5, "val_map": 50.0}],
        "best_epoch": 1,
        "split": {"forget_identities": 2, "images": {"train": 10}},
        "later": {"any": ["thing"]},
    },
}


def opened(folder: Path, record: dict[str, Any]) -> Run:
    (folder / "oneshui.json").write_text(json.dumps(record))
    return Run.open(folder)


def test_complete_record_is_read(tmp_path: Path) -> None:
    run = opened(tmp_path, RECORD)
    assert (run.labels, run.task, run.request_size) == (("a", "b"), "multi_label", 2)
    assert run.record.report == RECORD["report"]


def test_published_record_is_read(tmp_path: Path) -> None:
    hidden = {"dataset": {"name": "x", "task": None, "labels": ["a"], "fingerprint": None}, "parent": {"weights": "0" * 64}, "report": {}}
    run = opened(tmp_path, RECORD | hidden)
    with pytest.raises(OneshuiError, match=r"oneshui\.json is damaged: its description of the data has no 'task'"):
        _ = run.task
    with pytest.raises(OneshuiError, match="does not contain the number of forget identities"):
        _ = run.request_size


@pytest.mark.parametrize(
    ("place", "values"),
    [
        ("kind", (None, 5, "x", [])),
        ("seed", (None, "3", 1.5, True, [])),
        ("options", (None, 5, [], {"lr": {"x": 1}}, {"dataset": "x" * 5000})),
        ("dataset", (None, 5, [])),
        ("dataset.labels", (5, "ab", [5], [None])),
        ("dataset.task", (5, "regression")),
        ("dataset.images", ("20", -1, 1.5)),
        ("parent", (5, "x", [], {"run": 5}, {"weights": []})),
        ("weights", (5, [], {})),
        ("split", (5, [], {})),
        ("state", (None, "x", 5)),
        ("versions", (None, 5, [])),
        ("report", (None, 5, [])),
        ("report.split", (5, [], {"forget_identities": "x"}, {"images": {"train": "x"}}, {"images": 5})),
        (
            "report.history",
            (5, {}, [5], [{}], [{"epoch": 1}], [{"epoch": 1, "train_loss": "x"}], [{"epoch": 1, "train_loss": 1, "val_map": None}]),
        ),
        ("report.best_epoch", (2, -1, "x", 1.5)),
        ("report.shards", (5, [5], [{}], [{"shard": "x"}])),
        ("report.photos", ("x", -1)),
        ("report.reads", (5, "support", [5])),
        ("report.method_options", (5, [], {"x": {"y": 1}})),
    ],
)
def test_field_of_another_type_is_one_sentence(tmp_path: Path, place: str, values: tuple[Any, ...]) -> None:
    for value in values:
        record = json.loads(json.dumps(RECORD))
        *outer, last = place.split(".")
        within = record
        for key in outer:
            within = within[key]
        within[last] = value
        with pytest.raises(OneshuiError) as raised:
            opened(tmp_path, record)
        message = str(raised.value)
        assert message.startswith(f"{tmp_path / 'oneshui.json'} is "), value
        assert outer or last in message
        assert "\n" not in message
        assert len(message) < 500


def test_unlearned_model_may_count_its_shards(tmp_path: Path) -> None:
    record = json.loads(json.dumps(RECORD))
    record["report"] = record.get("report", {}) | {"method": "drop-shard", "shards": 2, "shards_dropped": 1}
    assert opened(tmp_path, record).record.report["shards"] == 2


@pytest.mark.parametrize("field", ["kind", "seed", "options", "dataset"])
def test_missing_field_is_named(tmp_path: Path, field: str) -> None:
    with pytest.raises(OneshuiError, match=f"is not complete: it has no field '{field}'"):
        opened(tmp_path, {key: value for key, value in RECORD.items() if key != field})


def test_options_that_no_training_has_are_refused(tmp_path: Path) -> None:
    from oneshui_hf.stages.run_data import training_options

    assert training_options(opened(tmp_path, RECORD)).lr == 1e-4
    for options in ({"dataset": "x", "no_such_option": 1}, {"dataset": "x", "epochs": 0}, {"dataset": "x", "lr": "x"}, {}):
        with pytest.raises(OneshuiError, match=r"oneshui\.json is damaged: ") as raised:
            training_options(opened(tmp_path, RECORD | {"options": options}))
        assert raised.value.exit_code == 1
