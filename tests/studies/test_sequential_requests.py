"""`sequential_requests.py`: every step is a batch of the desk, both orders end at the same model, and the figures can be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.dom.minidom import parse

import pytest
import sequential_requests as study

import oneshui_hf
from oneshui_hf.data.split import load_split
from oneshui_hf.runs import SPLIT, Run
from oneshui_hf.stages.batch_cost import SIMULATED
from support.faces import write_photos

FAST: dict[str, Any] = {"steps_per_identity": 2, "rank": 1, "identities_per_step": 8, "target_fraction": 0.5, "targets": "quantile"}


def name_of(person: int) -> str:
    return f"Zora Canary {person:02d}"


@pytest.mark.slow
def test_everybody_is_forgotten_by_the_desk_in_each_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "vault"))
    (tmp_path / "photos").mkdir()
    write_photos(tmp_path / "photos", 20, 4, name_of)
    run = oneshui_hf.train(dataset=str(tmp_path / "photos"), model="tiny", forget=3, epochs=2, output_dir=str(tmp_path / "run"))
    oneshui_hf.prepare(run, method="forget-keys", face_encoder="none", simulate_batches=False, **FAST)
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    opened = study.Study.open(Run.open(run.path))
    assert set(opened.names.values()) == set(load_split(run.path / SPLIT).forget)
    found = study.results(opened, tmp_path / "vault")
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()} == before

    first, reverse, once = (found["orders"][name] for name in ("first order", "reverse order", "at once"))
    assert [row["people"] for row in first] == [row["people"] for row in reverse] == [1, 2, 3]
    assert [row["people"] for row in once] == [3]
    for name in ("retain", "val", "test", "loss_forgotten", "loss_test"):
        assert first[-1][name] == pytest.approx(once[0][name], rel=1e-3)  # keys add up, in any order
        assert reverse[-1][name] == pytest.approx(once[0][name], rel=1e-3)
    assert first[-1]["loss_waiting"] is None
    assert first[0]["estimate"] == reverse[0]["estimate"]
    assert all(len(row["verdicts"]) == 1 for row in first)
    assert first[-1]["val_loss"] == pytest.approx(
        found["original"]["val"] - first[-1]["val"], abs=0.01
    )  # val is small, so all of it is used
    assert study.curve(opened.run, tmp_path / "vault")[SIMULATED] == found["simulated"]
    assert not any(name_of(person) in json.dumps(found) for person in range(20))

    study.write(found, tmp_path / "out")
    assert json.loads((tmp_path / "out/sequential.json").read_text()) == found
    for name in ("cost", "losses", "legend"):
        assert parse(str(tmp_path / f"out/{name}.svg")).documentElement is not None


def test_the_budget_ends_before_the_first_number_of_people_that_costs_more() -> None:
    rows = [
        {"people": 0, "retain": 90.0, "val": 50.0},
        {"people": 10, "retain": 88.0, "val": 50.0},
        {"people": 20, "retain": 80.0, "val": 50.0},
    ]
    report = {SIMULATED: {"rows": rows}}
    assert study.budget_end(report, 2.0, 20) == 10
    assert study.budget_end(report, 1.0, 20) == 5
    assert study.budget_end(report, 50.0, 20) is None
