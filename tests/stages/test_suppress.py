"""`train --suppress`: the people who were forgotten are in no set of the next training."""

from __future__ import annotations

import dataclasses
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import oneshui_hf
from oneshui_hf.data.split import load_split
from oneshui_hf.desk.desk import Desk
from oneshui_hf.desk.suppression import find_forgotten
from oneshui_hf.errors import NotResumableError, OneshuiError, UsageError
from oneshui_hf.runs import Run
from oneshui_hf.stages.training import checkpoint
from oneshui_hf.vault import Secrets, draw_secrets, new_id
from support.commands import Oneshui, sentence
from support.faces import portrait, write_photos
from support.recording_reporter import RecordingReporter

NOW = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)
LEDGER = Path("requests/ledger.jsonl")
PEOPLE = 24


def name_of(person: int) -> str:
    return f"Zora Canary {person:02d}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, a run, and a desk with its vault: two people were forgotten, one of them by two requests."""
    folder = tmp_path_factory.mktemp("made")
    photos = folder / "photos"
    photos.mkdir()
    write_photos(photos, PEOPLE, 4, name_of)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ONESHUI_VAULT", str(folder / "vault"))
        run = train("run")
        train_people = sorted(load_split(folder / "run/split.json").people["train"])
        for name in (*train_people[:2], train_people[0]):
            portrait(1, 50).save("face.png")
            request = oneshui_hf.receive_request("face.png", identity=name, now=NOW)["request"]
            oneshui_hf.identify_request(request, run, now=NOW)
        oneshui_hf.receive_request("face.png", identity=train_people[5], now=NOW)  # not applied
        oneshui_hf.apply_requests(run=run, method="do-nothing", now=NOW)
    return folder


def train(output: str, **options: Any) -> Run:
    return oneshui_hf.train(**{"dataset": "photos", "model": "tiny", "forget": 1, "epochs": 1, "output_dir": output} | options)


@pytest.fixture
def forgotten(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the two people; the working folder is a copy of the made one."""
    for name in ("photos", "run", "requests"):
        shutil.copytree(made / name, tmp_path / name)
    shutil.copytree(made / "vault", tmp_path / "vault")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "vault"))
    return sorted(load_split(Path("run/split.json")).people["train"])[:2]


def in_split(run: Run) -> set[str]:
    split = load_split(run.path / "split.json")
    return {*split.people["train"], *split.people["val"], *split.people["test"], *split.forget, *split.support, *split.reserved}


def test_a_drawn_split_has_none_of_the_forgotten_people(forgotten: list[str]) -> None:
    reporter = RecordingReporter()
    run = train("next", suppress=LEDGER, reporter=reporter)
    everyone = {name_of(person) for person in range(PEOPLE)}
    assert in_split(run) == everyone - set(forgotten)
    chain = Desk(Path("requests")).ledger.read()
    assert run.record.report["forgotten_left_out"] == {
        **{"people": 2, "requests": 3, "absent": 0, "unnamed": 0, "erased": 0},
        "head": chain.head,
    }
    assert "People of this data who were forgotten and are left out: 2 (requests in the ledger: 3)." in reporter.notes
    assert reporter.warnings == []
    record = (run.path / "oneshui.json").read_text()
    assert "Canary" not in record
    assert Path(json.loads(record)["options"]["suppress"]) == LEDGER.resolve()


def test_later_stages_need_neither_ledger_nor_vault(forgotten: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = train("next", suppress=LEDGER)
    shutil.rmtree("requests")
    monkeypatch.setenv("ONESHUI_VAULT", "nowhere")
    assert in_split(oneshui_hf.retrain(run)) == in_split(run)
    assert oneshui_hf.evaluate(run, resamples=100)["retain"]["people"] > 0
    unknown = "Nothing was trained on this person: the name is in no set of the run's split."
    portrait(1, 50).save("face.png")
    request = oneshui_hf.receive_request("face.png", identity=forgotten[0], desk="another")["request"]
    assert oneshui_hf.identify_request(request, run, desk="another")["basis"] == unknown


def test_people_are_left_out_of_a_split_file_as_well(forgotten: list[str]) -> None:
    run = train("next", suppress=LEDGER, split="run/split.json")
    before, after = load_split(Path("run/split.json")), load_split(run.path / "split.json")
    assert after == before.without(set(forgotten))
    for name in ("train", "val", "test"):
        assert after.people[name] == [person for person in before.people[name] if person not in forgotten]


def test_a_split_without_people() -> None:
    split = load_split_of(forget=["a"], train=["a", "b", "c"])
    left = split.without({"b", "t"})
    assert (left.people, left.forget, left.support, left.reserved) == (
        {"train": ["a", "c"], "val": ["v"], "test": ["u"]},
        ["a"],
        {"a": "a1"},
        {},
    )
    with pytest.raises(OneshuiError, match="the split has no person for val and forget; draw a new split"):
        split.without({"a", "v"})


def load_split_of(forget: list[str], train: list[str]) -> Any:
    from oneshui_hf.data.split import Split

    people = {"train": train, "val": ["v"], "test": ["t", "u"]}
    return Split(0, people, forget, {person: f"{person}1" for person in forget}, {"b": "b1"}, "all")


def test_an_erased_request_can_suppress_no_one(forgotten: list[str]) -> None:
    desk = Desk(Path("requests"))
    served = {"weights": "a" * 64, "score": None, "scores": {}, "intervals": {}}
    for request in ("R-000001", "R-000003"):  # both are of the first person
        desk.record(request, "served", served, NOW)
        desk.answer(request, NOW)
    desk.erase("R-000001", NOW)
    names = [name_of(person) for person in range(PEOPLE)]
    found = find_forgotten(LEDGER, names)
    assert (found.names, found.erased) == (frozenset(forgotten), 1)  # the other request is still known
    desk.erase("R-000003", NOW)
    found = find_forgotten(LEDGER, names)
    assert (found.names, found.people, found.erased) == (frozenset(forgotten[1:]), 1, 2)
    assert str(found.warning).startswith("People who were forgotten cannot be found in the data, so they are used again")
    assert forgotten[1] not in repr(found)
    reporter = RecordingReporter()
    train("next", suppress=LEDGER, reporter=reporter)
    assert reporter.warnings == [found.warning]


def test_people_who_are_not_in_the_data_or_have_no_name_are_counted(forgotten: list[str]) -> None:
    found = find_forgotten(LEDGER, [forgotten[1], "another"])
    assert (found.names, found.requests, found.absent, found.warning) == (frozenset(forgotten[1:]), 3, 2, None)
    portrait(1, 50).save("face.png")
    request = oneshui_hf.receive_request("face.png", now=NOW)["request"]
    oneshui_hf.identify_request(request, "run", photo_alone=True, now=NOW)
    oneshui_hf.apply_requests([request], run="run", method="do-nothing", output_dir="other", now=NOW)
    found = find_forgotten(LEDGER, forgotten)
    assert (found.people, found.unnamed) == (2, 1)
    assert "requests without a name: 1" in str(found.warning)


def test_the_ledger_and_the_vault_must_be_whole(forgotten: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"There is no ledger at nowhere.jsonl; name the ledger.jsonl of a request desk"):
        train("next", suppress="nowhere.jsonl")
    monkeypatch.setenv("ONESHUI_VAULT", "another")
    with pytest.raises(OneshuiError, match="The secrets of 3 of the requests in .* are not in the vault"):
        train("next", suppress=LEDGER)
    data = LEDGER.read_bytes()
    LEDGER.write_bytes(data.replace(b"do-nothing", b"do-nothinG", 1))
    with pytest.raises(OneshuiError, match="was changed"):
        train("next", suppress=LEDGER)
    assert not Path("next").exists()


def test_a_training_is_not_resumed_with_people_who_were_forgotten_since(forgotten: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        save(*_)
        raise KeyboardInterrupt

    save = checkpoint.save
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save", stop)
        train("next", suppress=LEDGER, epochs=2)
    shutil.copytree("next", "again")
    resumed = train("next", suppress=LEDGER, epochs=2, resume=True)
    assert resumed.record.report["forgotten_left_out"]["people"] == 2
    oneshui_hf.identify_request("R-000004", "run", now=NOW)
    oneshui_hf.apply_requests(["R-000004"], run="run", method="do-nothing", output_dir="other", now=NOW)
    with pytest.raises(NotResumableError, match=r"The sets of again contain people who were forgotten since the training started \(1\)"):
        train("again", epochs=2, resume=True)


def test_a_cached_model_is_another_one_once_a_person_is_left_out(forgotten: list[str], tmp_path: Path) -> None:
    from oneshui_hf.cache import Cache
    from oneshui_hf.stages.command_options import TrainOptions
    from oneshui_hf.stages.distributed import make_accelerator
    from oneshui_hf.stages.evaluation.model_cache import ModelCache

    cache = ModelCache(Cache(tmp_path / "cache"), make_accelerator())
    options = TrainOptions(dataset="photos", model="tiny", forget=1, epochs=1)
    plain, suppressed = (cache.original_key(dataclasses.replace(options, suppress=ledger)) for ledger in (None, str(LEDGER)))
    assert plain["split"] != suppressed["split"]
    assert {**plain, "split": ""} == {**suppressed, "split": ""}


def test_the_command_prints_how_many(oneshui: Oneshui, forgotten: list[str]) -> None:
    words = ["train", "--dataset", "photos", "--model", "tiny", "--forget", "1", "--epochs", "1", "--output-dir", "next"]
    code, _, err = oneshui(*words, "--suppress", LEDGER)
    assert code == 0
    assert "People of this data who were forgotten and are left out: 2" in err
    assert "Canary" not in err
    code, _, err = oneshui(*words, "--suppress", "photos")
    assert (code, "There is no ledger at photos" in sentence(err)) == (2, True)


def test_fingerprints_of_many_names_are_compared_with_one_secret(tmp_path: Path) -> None:
    secrets = Secrets(tmp_path, new_id())
    secrets.create(draw_secrets(()), tmp_path)
    names = [f"person {number}" for number in range(50)]
    assert secrets.find_identity(names, secrets.fingerprint("person 7")) == ["person 7"]
    assert secrets.find_identity(names, secrets.fingerprint("someone else")) == []
