"""Requests from receipt to answer with a tiny model: identification, batches, receipts, kills, and what may not be found on the disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import oneshui_hf
from oneshui_hf.data.split import load_split
from oneshui_hf.desk.desk import Desk
from oneshui_hf.desk.entries import shows_no_change
from oneshui_hf.desk.verification import hash_model
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.models.load import load_model
from oneshui_hf.runs import SPLIT, Run
from oneshui_hf.stages import identify as recognition
from oneshui_hf.stages.requests import apply as stage
from support.colour_encoder import Colours
from support.faces import portrait, write_photos
from support.processes import another_writer
from support.recording_reporter import RecordingReporter

METHOD = "forget-keys"
FAST: dict[str, Any] = {"steps_per_identity": 2, "rank": 1, "identities_per_step": 4, "target_fraction": 0.3, "targets": "quantile"}
PEOPLE, PHOTOS = 24, 4
NOW = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)


def name_of(person: int) -> str:
    return f"Zora Canary {person:02d}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has keys and face templates, and its vault."""
    folder = tmp_path_factory.mktemp("made")
    photos = folder / "photos"
    photos.mkdir()
    write_photos(photos, PEOPLE, PHOTOS, name_of)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESHUI_VAULT", str(folder / "vault"))
        patch.setattr(recognition, "load_encoder", lambda name, device: Colours())
        run = oneshui_hf.train(dataset=str(photos), model="tiny", forget=3, epochs=1, output_dir=str(folder / "run"))
        oneshui_hf.prepare(run, method=METHOD, face_encoder="colours", **FAST)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of the run, with a copy of its vault; the desk is in the same folder."""
    shutil.copytree(made / "vault", tmp_path / "vault")
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "vault"))
    monkeypatch.setattr(recognition, "load_encoder", lambda name, device: Colours())
    monkeypatch.chdir(tmp_path)
    return Run.open(shutil.copytree(made / "run", tmp_path / "run"))


def people(run: Run, name: str = "train") -> list[int]:
    """Return the numbers of the people of a set."""
    return [int(person.rpartition(" ")[2]) for person in sorted(load_split(run.path / SPLIT).people[name])]


def receive(person: int, *, named: bool = True, days: float = 0, photo: int = 50) -> str:
    file = Path(f"canary-portrait-{person}.png")
    portrait(person, photo).save(file)
    identity = {"identity": name_of(person)} if named else {}
    found = oneshui_hf.receive_request(file, **identity, now=NOW + timedelta(days=days))
    file.unlink()  # the desk has its own copy
    return str(found["request"])


def identified(run: Run, person: int, **options: Any) -> str:
    """Receive and identify a request, and return its id."""
    request = receive(person)
    assert oneshui_hf.identify_request(request, run, **options, now=NOW)["found_by"] == "name"
    return request


def entries(kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in Path("requests/ledger.jsonl").read_bytes().splitlines()]
    return [entry for entry in found if entry["kind"] == kind]


def problems(**options: Any) -> list[str]:
    return list(oneshui_hf.verify("requests/ledger.jsonl", **options)["problems"])


def states() -> dict[str, str]:
    return {row["request"]: row["state"] for row in oneshui_hf.list_requests()}


def on_disk(folder: Path) -> bytes:
    return b"\0".join(str(file.relative_to(folder)).encode() + file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_two_requests_from_receipt_to_answer(run: Run, tmp_path: Path) -> None:
    by_name, by_face = people(run)[:2]
    first, second = receive(by_name), receive(by_face, named=False)
    assert (first, second) == ("R-000001", "R-000002")
    found = oneshui_hf.identify_request(first, run, now=NOW)
    assert (found["identity"], found["found_by"]) == (name_of(by_name), "name")
    found = oneshui_hf.identify_request(second, run, now=NOW)
    assert (found["identity"], found["found_by"]) == (name_of(by_face), "photo")
    assert found["match"]["accepted"]
    assert found["match"]["similarity"] >= found["match"]["threshold"]

    before = Path("requests/ledger.jsonl").read_bytes()
    plan = oneshui_hf.apply_requests(run=run, method=METHOD, dry_run=True)
    assert plan == {
        "batch": 1,
        "method": METHOD,
        "requests": [{"request": first}, {"request": second}],
        "run": plan["run"],
        "estimate": plan["estimate"],
        "dry_run": True,
    }
    assert Path("requests/ledger.jsonl").read_bytes() == before
    assert not Path(plan["run"]).exists()

    done = oneshui_hf.apply_requests(run=run, method=METHOD, strength=1.5, now=NOW + timedelta(days=1))
    new = Run.open(done["run"])
    assert new.path == Path(f"{run.path}-batch1")
    assert new.record.report["photos"] == done["destroyed"] == 2
    assert set(states().values()) == {"verified"}
    assert problems(run=new.path, anchor=done["head"]) == []
    (applied, _), (verified, _) = entries("applied"), entries("verified")
    assert applied["content"]["method_options"]["strength"] == 1.5
    assert applied["content"]["weights_before"] == run.weights
    assert applied["content"]["weights_after"] == verified["content"]["weights"] == new.weights
    assert applied["content"]["destroyed"] == applied["content"]["people_in_batch"] == 2
    for id in (first, second):
        receipt = Path("requests/receipts") / f"{id}.json"
        assert oneshui_hf.verify(receipt, run=new.path)["problems"] == []
        assert oneshui_hf.verify(receipt, run=run.path)["problems"]
        contents = json.loads(receipt.read_bytes())
        assert contents["verified"]["loss_after"] == new.record.report["support_loss"]["after"][int(id[-1]) - 1]
        assert any("owner of both models" in sentence for sentence in contents["applied"]["not_measured"])

    assert oneshui_hf.serve_requests(run=new, now=NOW + timedelta(days=2))["requests"] == [first, second]
    letter = oneshui_hf.answer_request(first, now=NOW + timedelta(days=3))
    assert "together with the requests of 1 other person" in letter["letter"]
    assert oneshui_hf.erase_request(first, now=NOW + timedelta(days=400))["erased"]
    assert states() == {first: "answered", second: "served"}
    assert problems(run=new.path, anchor=done["head"]) == []

    found_bytes = on_disk(tmp_path / "requests")
    photo = portrait(by_face, 50)
    for canary in (b"Zora", b"Canary", b"canary-portrait", photo.tobytes()[:30], b"\x89PNG", str(tmp_path).encode(), b".png"):
        assert canary not in found_bytes, canary
    kept = Desk(Path("requests")).kept(Desk(Path("requests")).find(second))
    assert kept.photo().startswith(b"\x89PNG")


def test_changes_of_the_model_are_found(run: Run) -> None:
    identified(run, people(run)[0])
    new = Path(oneshui_hf.apply_requests(run=run, method=METHOD, now=NOW)["run"])
    weights, config = new / "model.safetensors", new / "config.json"
    for place in (0, 9, weights.stat().st_size // 2, weights.stat().st_size - 1):
        data = weights.read_bytes()
        weights.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        (problem,) = problems(run=new)
        assert problem.startswith(f"The weights in {new} are not those of a model that was made")
        weights.write_bytes(data)
    config.write_text(config.read_text().replace("}", " }", 1))
    (problem,) = problems(run=new)
    assert problem.startswith(f"The configuration in {new} is not the one of the model")
    weights.unlink()
    assert "contains no model.safetensors" in problems(run=new)[0]
    with pytest.raises(UsageError, match="There is no run at nowhere"):
        oneshui_hf.verify("requests/ledger.jsonl", run="nowhere")


def test_people_that_the_model_was_not_trained_on_are_unknown(run: Run) -> None:
    other = people(run, "val")[0]
    for request, options, basis in (
        (receive(other), {}, "the name is in the set 'val'"),
        (receive(0, named=False), {"identity": "Nobody Canary"}, "the name is in no set"),
        (receive(other, named=False), {}, "The face matches none of "),
    ):
        found = oneshui_hf.identify_request(request, run, **options, now=NOW)
        assert found["found_by"] is found["identity"] is None
        assert basis in found["basis"]
        assert states()[request] == "received"
    black = Path("black.png")
    Image.new("RGB", (40, 40)).save(black)
    request = oneshui_hf.receive_request(black, now=NOW)["request"]
    found = oneshui_hf.identify_request(request, run, now=NOW)
    assert "No face was found" in found["basis"]
    assert found["match"]["similarity"] is None
    with pytest.raises(UsageError, match="No request is identified, so there is nothing to apply"):
        oneshui_hf.apply_requests(run=run, method=METHOD)
    with pytest.raises(UsageError, match=f"{request} is received, and only a request that is identified can be applied; identify it"):
        oneshui_hf.apply_requests([request], run=run, method=METHOD)
    oneshui_hf.refuse_request(request, reason="No person is on the photo.", now=NOW)
    assert "No face was found" in oneshui_hf.answer_request(request, now=NOW)["letter"]
    assert problems() == []


def test_an_uncertain_face_is_confirmed_by_the_operator(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    request, reporter = receive(people(run, "val")[0], named=False), RecordingReporter()
    questions: list[str] = []
    monkeypatch.setattr(reporter, "confirm", lambda question: questions.append(question) or True)
    found = oneshui_hf.identify_request(request, run, reporter=reporter, now=NOW)
    assert found["found_by"] == "operator"
    assert found["identity"] in questions[0]
    (entry,) = entries("identified")
    assert not entry["content"]["match"]["accepted"]


def test_a_photo_alone_is_enough_for_methods_that_use_no_identity(run: Run) -> None:
    request = receive(people(run)[0], named=False)
    with pytest.raises(UsageError, match="--photo-alone is for a person whose identity in the training data is not known"):
        oneshui_hf.identify_request(request, run, photo_alone=True, identity="x")
    oneshui_hf.identify_request(request, run, photo_alone=True, now=NOW)
    with pytest.raises(UsageError, match=f"acts on each identity, and that of {request} is not known"):
        oneshui_hf.apply_requests(run=run, method=METHOD)
    assert not entries("batch")
    done = oneshui_hf.apply_requests(run=run, method="do-nothing", now=NOW)
    (row,) = done["requests"]
    assert row["loss_before"] == row["loss_after"]
    (applied,) = entries("applied")
    assert applied["content"]["destroyed"] == 0


def test_a_run_without_enrolment_needs_a_name(run: Run) -> None:
    shutil.rmtree(run.path / "methods")
    (run.path / SPLIT).unlink()
    request = receive(1, named=False)
    with pytest.raises(UsageError, match="has enrolled no identity, so the photo cannot be identified"):
        oneshui_hf.identify_request(request, run)
    found = oneshui_hf.identify_request(request, run, identity=name_of(1), now=NOW)
    assert found["found_by"] == "operator"
    assert "The run has no split" in found["basis"]


def test_later_batches_continue_from_the_last_model(run: Run) -> None:
    numbers = people(run)[:3]
    identified(run, numbers[0])
    first = Run.open(oneshui_hf.apply_requests(run=run, method=METHOD, now=NOW)["run"])
    identified(run, numbers[1])
    reporter = RecordingReporter()
    second = oneshui_hf.apply_requests(run=first, method=METHOD, reporter=reporter, now=NOW)
    assert (second["batch"], reporter.warnings) == (2, [])
    assert states() == {"R-000001": "verified", "R-000002": "verified"}
    identified(run, numbers[2])
    third = oneshui_hf.apply_requests(run=run, method=METHOD, output_dir="third", reporter=reporter, now=NOW)
    assert third["batch"] == 3
    assert "so 2 people who were forgotten then may not be forgotten in it" in reporter.warnings[0]
    assert "so 2 people who were forgotten then" in entries("applied")[-1]["content"]["not_done"][-1]
    with pytest.raises(UsageError, match="R-000001 was applied to another model than the one in"):
        oneshui_hf.serve_requests(["R-000001"], run=second["run"], now=NOW)
    assert oneshui_hf.serve_requests(run=second["run"], now=NOW)["requests"] == ["R-000002"]
    with pytest.raises(UsageError, match="No request waits for the model in"):
        oneshui_hf.serve_requests(run=run, now=NOW)
    assert problems() == []


def test_measured_scores_are_recorded_when_the_model_is_served(run: Run) -> None:
    identified(run, people(run)[0])
    new = oneshui_hf.apply_requests(run=run, method=METHOD, now=NOW)["run"]
    metrics = oneshui_hf.evaluate(new, resamples=100)
    oneshui_hf.serve_requests(run=new, now=NOW)
    (served,) = entries("served")
    assert served["content"]["scores"] == {name: metrics[name]["map"] for name in ("retain", "val", "test")}
    assert served["content"]["intervals"]["val"] == metrics["intervals"]["val"]["map"]
    assert problems(run=new) == []


def stop(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def forbidden(*_: Any, **__: Any) -> Any:
    raise AssertionError("a second model was made")


def test_a_batch_that_was_killed_after_the_model_is_completed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = people(run)[:3]
    for person in numbers[:2]:
        identified(run, person)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "_record", stop)
        oneshui_hf.apply_requests(run=run, method=METHOD, now=NOW)
    made = Path(f"{run.path}-batch1")
    files = hash_model(made)
    assert set(states().values()) == {"identified"}
    identified(run, numbers[2])
    reporter = RecordingReporter()
    with monkeypatch.context() as patch:
        patch.setattr(stage, "unlearn", forbidden)
        done = oneshui_hf.apply_requests(run=run, method=METHOD, reporter=reporter, now=NOW)
    assert [row["request"] for row in done["requests"]] == ["R-000001", "R-000002"]
    assert states() == {"R-000001": "verified", "R-000002": "verified", "R-000003": "identified"}
    assert hash_model(made) == files
    assert any("Completing batch 1" in note for note in reporter.notes)
    assert problems(run=made) == []
    assert oneshui_hf.apply_requests(run=made, method=METHOD, now=NOW, budget=100.0)["batch"] == 2


def test_a_batch_that_was_killed_before_the_model_starts_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    identified(run, people(run)[0])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "unlearn", stop)
        oneshui_hf.apply_requests(run=run, method=METHOD, now=NOW)
    assert len(entries("batch")) == 1
    done = oneshui_hf.apply_requests(run=run, method=METHOD, now=NOW)
    assert (done["batch"], len(entries("batch"))) == (1, 2)
    assert problems() == []


def test_a_torn_batch_is_completed(run: Run) -> None:
    for person in people(run)[:2]:
        identified(run, person)
    oneshui_hf.apply_requests(run=run, method=METHOD, now=NOW)
    ledger = Path("requests/ledger.jsonl")
    whole = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(whole[:-2]) + whole[-2][:100])  # the first request has its entries, the second has not
    done = oneshui_hf.apply_requests(run=run, method=METHOD, now=NOW)
    assert [row["request"] for row in done["requests"]] == ["R-000002"]
    assert set(states().values()) == {"verified"}
    assert problems() == []


def test_two_operators_do_not_apply_at_once(run: Run) -> None:
    request = identified(run, people(run)[0])
    desk = Desk(Path("requests"))
    with another_writer(desk.batch):
        with pytest.raises(OneshuiError, match="Another process is writing requests/batch"):
            oneshui_hf.apply_requests(run=run, method=METHOD)
        with pytest.raises(OneshuiError, match=f"Requests are being applied, perhaps {request} as well; wait until it is done"):
            oneshui_hf.withdraw_request(request, now=NOW)
        assert receive(people(run)[1]) == "R-000002"  # others can come in meanwhile
    oneshui_hf.withdraw_request(request, now=NOW)
    assert problems() == []


def test_the_range_of_unseen_identities_is_that_of_val(run: Run) -> None:
    from oneshui_hf.stages.distributed import make_accelerator
    from oneshui_hf.stages.run_data import open_data

    stored = run.record.report["unseen_loss"]
    val = open_data(run, make_accelerator()).sets["val"]
    pixels, labels = val.batch(torch.arange(len(val)), torch.device("cpu"))
    with torch.no_grad():
        logits = load_model(run.path)[0](pixel_values=pixels).logits.double()
    for name, of in (("given", labels.double()), ("predicted", (logits > 0).double())):
        losses = (torch.nn.functional.softplus(logits) - of * logits).mean(dim=1).sort().values
        places = torch.tensor([0.05, 0.95]).double() * (len(losses) - 1)
        low = places.floor().long()
        expected = losses[low] + (places - low) * (losses[(low + 1).clamp(max=len(losses) - 1)] - losses[low])
        assert torch.allclose(torch.tensor(stored[name]).double(), expected, atol=1e-6)
    assert (stored["photos"], stored["people"]) == (len(val), len(people(run, "val")))


@pytest.mark.parametrize(
    ("report", "verdict"),
    [
        ({"after": [0.5]}, "like an unseen identity"),
        ({"after": [1.2]}, "like an unseen identity"),  # labels of the model before fit less than the model's own
        ({"after": [0.1]}, "not yet"),
        ({"after": [2.0]}, "too much"),
        ({"after": [None]}, "too much"),
        ({"after": [0.4], "labels": "given"}, "not yet"),
        ({"after": [0.5], "unseen_loss": None}, "unknown"),
        ({"after": [0.5], "before": []}, "unknown"),
    ],
)
def test_verdicts(report: dict[str, Any], verdict: str) -> None:
    from oneshui_hf.stages.unseen_range import judged

    loss = {"before": report.get("before", [0.2]), "after": report["after"]}
    ranges = report.get("unseen_loss", {"predicted": [0.3, 1.0], "given": [0.5, 1.5]})
    found = judged({"labels": report.get("labels", "guessed by the model"), "support_loss": loss, "unseen_loss": ranges}, 0)
    assert found["verdict"] == verdict
    assert not shows_no_change(found)  # the loss was below the range, or there is none
    assert shows_no_change(found | {"verdict": "like an unseen identity", "loss_before": 0.4, "unseen": [0.4, 0.5]})


def test_wrong_values_are_one_sentence(run: Run, tmp_path: Path) -> None:
    portrait(1, 1).save("face.png")
    for call, message in (
        (lambda: oneshui_hf.receive_request("nowhere.png"), "nowhere.png does not exist"),
        (
            lambda: oneshui_hf.receive_request("face.png", received="3.11.2026"),
            "--received takes a date such as 2026-11-03, not '3.11.2026'",
        ),
        (lambda: oneshui_hf.receive_request("face.png", received="2026-02-30"), "--received takes a date such as 2026-11-03"),
        (lambda: oneshui_hf.receive_request("face.png", received="2999-01-01"), "--received 2999-01-01 is in the future"),
        (lambda: oneshui_hf.list_requests(), "There is no ledger at requests/ledger.jsonl"),
        (lambda: oneshui_hf.verify("nowhere"), "There is no file nowhere; name a ledger or a receipt"),
    ):
        with pytest.raises(OneshuiError, match=message):
            call()
    assert not Path("requests").exists()


def test_list_selects_and_sorts(run: Run) -> None:
    for days in (0, 2, 4):
        receive(1, days=days)
    desk = Desk(Path("requests"))
    desk.extend("R-000001", "The number of requests.", NOW)
    desk.withdraw("R-000003", NOW)
    later = NOW + timedelta(days=31)
    select: Callable[..., list[str]] = lambda **options: [row["request"] for row in oneshui_hf.list_requests(now=later, **options)]  # noqa: E731
    assert select() == ["R-000002", "R-000001", "R-000003"]
    assert select(state="open") == ["R-000002", "R-000001"]
    assert select(state="withdrawn") == ["R-000003"]
    assert select(due_within=7) == ["R-000002"]
    assert select(due_within=0) == []
    assert date.fromisoformat(oneshui_hf.list_requests()[0]["due"]) == date(2026, 12, 5)
