"""What a batch costs the others: the estimate before it, the budget, the measurement after it, and the warning about a strange photo."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import oneshui_hf
from oneshui_hf.data.split import load_split
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods.artefact import read_header
from oneshui_hf.metrics.functional import score
from oneshui_hf.models.load import load_model
from oneshui_hf.models.outputs import predict
from oneshui_hf.runs import SPLIT, Run, hash_file
from oneshui_hf.stages.batch_cost import SIMULATED, estimate_cost
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_hf.stages.photo_range import PHOTO_RANGE
from oneshui_hf.stages.requests import budget as stage
from oneshui_hf.stages.run_data import open_data
from support.commands import Oneshui, sentence
from support.faces import portrait, write_photos
from support.recording_reporter import RecordingReporter

METHOD = "forget-keys"
FAST: dict[str, Any] = {"steps_per_identity": 1, "rank": 1, "identities_per_step": 8, "target_fraction": 0.3, "targets": "quantile"}
NOW = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)


def name_of(person: int) -> str:
    return f"Zora Canary {person:02d}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, its keys with and without simulated batches, and its vault."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "photos").mkdir()
    write_photos(folder / "photos", 40, 5, name_of)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESHUI_VAULT", str(folder / "vault"))
        run = oneshui_hf.train(dataset=str(folder / "photos"), model="tiny", forget=3, epochs=1, output_dir=str(folder / "run"))
        oneshui_hf.prepare(run, method="ssd", simulate_batches=False)
        shutil.move(run.path / "methods/ssd", folder / "ssd")
        oneshui_hf.prepare(run, method="ssd")
        oneshui_hf.prepare(run, method=METHOD, face_encoder="none", **FAST)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    shutil.copytree(made / "vault", tmp_path / "vault")
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "vault"))
    monkeypatch.chdir(tmp_path)
    return Run.open(shutil.copytree(made / "run", tmp_path / "run"))


def identified(run: Run, place: int, image: Image.Image | None = None) -> str:
    """Receive and identify the request of a training person, and return its id."""
    name = sorted(load_split(run.path / SPLIT).people["train"])[place]
    (image or portrait(int(name[-2:]), 50)).save("face.png")
    request = str(oneshui_hf.receive_request("face.png", identity=name, now=NOW)["request"])
    oneshui_hf.identify_request(request, run, now=NOW)
    return request


def contents(kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in Path("requests/ledger.jsonl").read_bytes().splitlines()]
    return [entry["content"] for entry in found if entry["kind"] == kind]


def test_simulated_batches_change_nothing_else_and_use_up_no_key(made: Path, run: Run) -> None:
    with_curve, without = (read_header(folder) for folder in (run.path / "methods/ssd", made / "ssd"))
    assert with_curve["tensors"] == without["tensors"]  # the same bytes
    assert hash_file(run.path / "methods/ssd/artefact.safetensors") == hash_file(made / "ssd/artefact.safetensors")
    assert SIMULATED not in without["report"]
    found = with_curve["report"].pop(SIMULATED)
    unequal = {name for name in without["report"] if with_curve["report"][name] != without["report"][name]}
    assert unequal <= {"seconds", "peak_mb"}
    assert [row["people"] for row in found["rows"]][:4] == [0, 1, 2, 3]  # a quarter of the people have a reserved photo
    keys = read_header(run.path / f"methods/{METHOD}")["report"]
    train = len(load_split(run.path / SPLIT).people["train"])
    assert [row["people"] for row in keys[SIMULATED]["rows"]] == [0, 1, 2, 5, 10, train // 2]
    assert keys["people"] == train
    assert not any(name_of(person) in json.dumps(keys[SIMULATED]) for person in range(40))
    identified(run, 0)
    assert oneshui_hf.apply_requests(run=run, method=METHOD, budget=100, now=NOW)["destroyed"] == 1


def test_a_dry_run_states_what_the_simulation_takes(run: Run, oneshui: Oneshui) -> None:
    code, out, _ = oneshui("prepare", "run", "--method", "ssd", "--dry-run", "--overwrite")
    assert code == 0
    assert "6 simulated requests" in out
    code, out, _ = oneshui("prepare", "run", "--method", "ssd", "--dry-run", "--overwrite", "--no-simulate-batches")
    assert code == 0
    assert "simulated" not in out


def test_the_estimate_counts_everybody_in_the_chain_and_stands_next_to_the_measured_loss(run: Run) -> None:
    report = read_header(run.path / f"methods/{METHOD}")["report"]
    first = identified(run, 0)
    plan = oneshui_hf.apply_requests(run=run, method=METHOD, dry_run=True)["estimate"]
    one = oneshui_hf.apply_requests(run=run, method=METHOD, budget=50, now=NOW)
    assert one["estimate"] == {**plan, "budget": 50}
    assert plan["budget"] == stage.DEFAULT_BUDGET
    for place in (1, 2):
        identified(run, place)
    new = Run.open(one["run"])
    two = oneshui_hf.apply_requests(run=new, method=METHOD, budget=50, now=NOW)
    for done, people, before in ((one, 1, 0), (two, 3, 1)):
        expected = estimate_cost(report, people)
        assert expected is not None
        found = done["estimate"]
        assert (found["people"], found["people_before"]) == (people, before)
        assert (found["retain"], found["val"]) == (pytest.approx(expected.retain, abs=1e-3), pytest.approx(expected.val, abs=1e-3))
        val = open_data(run, make_accelerator()).sets["val"]
        scores = []
        for path in (run.path, done["run"]):
            model, _, task = load_model(Path(path))
            scores.append(score(predict(model, val, make_accelerator()), val.labels, task))
        assert done["val_loss"] == pytest.approx(scores[0] - scores[1], abs=1e-3)
    applied, batches = contents("applied"), contents("batch")
    assert [entry["estimate"] for entry in applied] == [one["estimate"], two["estimate"], two["estimate"]]
    assert [entry["estimate"] for entry in batches] == [one["estimate"], two["estimate"]]
    assert applied[0]["val_loss"] == one["val_loss"]
    receipt = json.loads(Path(f"requests/receipts/{first}.json").read_text())
    assert receipt["applied"]["estimate"] == one["estimate"]
    assert oneshui_hf.verify("requests/ledger.jsonl", run=two["run"])["problems"] == []


def test_beyond_the_budget_a_retraining_is_due_and_nothing_is_written(run: Run, oneshui: Oneshui, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"people": 0, "retain": 90.0, "val": 60.0}, {"people": 1, "retain": 87.5, "val": 60.0}]
    monkeypatch.setattr(stage, "_prepared_report", lambda *_: {SIMULATED: {"rows": rows}})
    identified(run, 0)
    before = {file: file.read_bytes() for file in Path("requests").rglob("*") if file.is_file()}
    code, out, err = oneshui("requests", "apply", "--run", "run", "--method", METHOD)
    assert code == 1
    assert sentence(err).startswith("Error: A retraining is due: forgetting 1 person is estimated to cost the others 2.50 points of score")
    assert {file: file.read_bytes() for file in Path("requests").rglob("*") if file.is_file()} == before
    assert not Path("run-batch1").exists()
    code, out, _ = oneshui("requests", "apply", "--run", "run", "--method", METHOD, "--dry-run")
    assert code == 0
    assert "2.50 points on retain, 0.00 on val; budget 2; " not in out
    assert "2.50 points on retain, 0.00 on val; budget 2. The batch would be refused: a retraining is due." in out
    assert oneshui("requests", "apply", "--run", "run", "--method", METHOD, "--dry-run", "--budget", "2.5")[1].count("refused") == 0
    code, _, err = oneshui("requests", "apply", "--run", "run", "--method", METHOD, "--budget", "-1")
    assert code == 2
    assert "--budget" in err


def test_without_an_estimate_there_is_a_note_and_no_budget(run: Run) -> None:
    reporter = RecordingReporter()
    identified(run, 0)
    with pytest.raises(UsageError, match="--budget cannot be checked: the method prepares nothing"):
        oneshui_hf.apply_requests(run=run, method="do-nothing", budget=2)
    done = oneshui_hf.apply_requests(run=run, method="do-nothing", reporter=reporter, now=NOW)
    assert (done["estimate"], done["val_loss"]) == (None, None)
    assert any("What the batch costs the others is not known" in note for note in reporter.notes)
    assert any("was not estimated" in text for text in contents("applied")[0]["not_measured"])


def test_a_missing_run_of_the_chain_or_missing_data_is_stated(run: Run, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stage.people_forgotten(run) == 0
    identified(run, 0)

    def gone(*_: Any, **__: Any) -> Any:
        raise OneshuiError("The data has changed.")

    with monkeypatch.context() as patch:
        patch.setattr(stage, "open_data", gone)
        done = oneshui_hf.apply_requests(run=run, method=METHOD, budget=100, now=NOW)
    assert done["val_loss"] is None
    assert any("the data was not at hand" in text for text in contents("applied")[0]["not_measured"])
    new = Run.open(done["run"])
    assert stage.people_forgotten(new) == 1
    shutil.move(run.path, "elsewhere")
    assert stage.people_forgotten(new) is None


def test_a_killed_batch_keeps_the_estimate_it_was_announced_with(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from oneshui_hf.stages.requests import apply

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    identified(run, 0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(apply, "_record", stop)
        oneshui_hf.apply_requests(run=run, method=METHOD, budget=7, now=NOW)
    done = oneshui_hf.apply_requests(run=run, method=METHOD, budget=9, now=NOW)
    assert done["estimate"]["budget"] == 7
    assert done["val_loss"] is not None


def test_a_photo_that_shows_no_face_is_a_warning_everywhere(run: Run, oneshui: Oneshui) -> None:
    assert run.record.report[PHOTO_RANGE]["people"] >= 8
    face, noise = portrait(200, 1), Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    for name, image, unlike in (("face", face, False), ("noise", noise, True)):
        image.save(f"{name}.png")
        arguments = ("unlearn", "run", "--method", "ssd", "--image", f"{name}.png", "--output-dir", f"{name}-run")
        code, out, err = oneshui(*arguments, "--json")
        assert code == 0, err
        assert ("noise.png is unlike all photos" in err) == unlike
        assert json.loads(out)["support"][0]["unlike_photos"] is unlike
        code, out, _ = oneshui(*arguments, "--overwrite")
        assert ("The photo is unlike those of unseen identities" in out) == unlike
    for place, image in enumerate((portrait(200, 2), noise)):
        identified(run, place, image)
    reporter = RecordingReporter()
    done = oneshui_hf.apply_requests(run=run, method=METHOD, budget=100, reporter=reporter, now=NOW)
    assert [row["unlike_photos"] for row in done["requests"]] == [False, True]
    assert [entry["unlike_photos"] for entry in contents("verified")] == [False, True]
    assert [warning.split(" ")[0] for warning in reporter.warnings if "unlike" in warning] == ["R-000002"]
    receipt = json.loads(Path("requests/receipts/R-000002.json").read_text())
    assert receipt["verified"]["unlike_photos"]
    assert any("unlike" in text for text in receipt["applied"]["not_measured"])
    new = Run.open(done["run"])
    assert new.record.report[PHOTO_RANGE] == run.record.report[PHOTO_RANGE]  # for the next request
    assert oneshui_hf.verify("requests/ledger.jsonl", run=new.path)["problems"] == []
