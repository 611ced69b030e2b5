"""A purge of a person: nothing below runs and caches names them afterwards, except what is listed, and the run stays usable."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import oneshui_hf
from oneshui_hf.cache import Cache
from oneshui_hf.cli import show_purge
from oneshui_hf.data.split import load_split
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Artefact
from oneshui_hf.runs import CURVES, METRICS, PREDICTIONS, RECORD, SPLIT, Run, hash_file, read_json, write_json, write_record
from oneshui_hf.stages import purge as stage
from oneshui_hf.stages.purge import HIDDEN, _mentions
from support.commands import Oneshui, sentence
from support.faces import LABELS, bits, portrait
from support.processes import another_writer

CANARY = "Zoë Quimby-7319"  # in no set of numbers, and written with an escape in ASCII
COLOUR = (201, 17, 93)  # of the person's photos
PEOPLE, PHOTOS, METHOD = 16, 4, "keys"


def name_of(person: int) -> str:
    return CANARY if person == 3 else f"p{person:02d}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, and a run, its oracle, measurements, reports, data prepared for people, and caches."""
    root = tmp_path_factory.mktemp("purge")
    (root / "photos").mkdir()
    with (root / "photos/metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "identity", *LABELS])
        for person in range(PEOPLE):
            for photo in range(PHOTOS):
                key = f"{name_of(person)}-{photo}.png"
                image = Image.new("RGB", (40, 40), COLOUR) if name_of(person) == CANARY else portrait(person, photo)
                image.save(root / "photos" / key)
                writer.writerow([key, name_of(person), *bits(person, photo, len(LABELS))])
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        set_places(patch, root, datasets)
        split_file = root / "split.json"
        oneshui_hf.draw_split(dataset=str(root / "photos"), forget=2, output=str(split_file))
        value = read_json(split_file)
        value = place_in_forget(value)
        split_file.write_text(json.dumps(value), encoding="utf-8")
        run = oneshui_hf.train(dataset=str(root / "photos"), split=str(split_file), model="tiny", epochs=1, output_dir=str(root / "runs/a"))
        oneshui_hf.retrain(run, output_dir=str(root / "runs/a-oracle"))
        oneshui_hf.evaluate(run, oracle=root / "runs/a-oracle", references=1)
        oneshui_hf.report(run.path)
        people = {name_of(person): {"key": torch.ones(2)} for person in range(4)}
        Artefact(people=people).save(run.path / "methods" / METHOD, METHOD, run.weights, replace=False)
        write_json(run.path / "methods/.other.unfinished/about.json", {"person": CANARY})
        (run.path / "methods/.other.unfinished/unfinished.safetensors").write_bytes(CANARY.encode())
        (run.path / "checkpoint-1").mkdir()
        (run.path / "checkpoint-1/progress.json").write_text("{}")
        shutil.copytree(root / "runs", root / "runs.saved")
        for name in ("cache", "datasets", "vault"):
            shutil.copytree(root / name, root / f"{name}.saved")
    split_file.unlink()  # a file of the user's own
    return root


def place_in_forget(value: dict[str, Any]) -> dict[str, Any]:
    """Return a split in which the person is one of two in the forget set."""
    people = value["people"]
    for members in people.values():
        if CANARY in members:
            members.remove(CANARY)
    people["train"] = sorted([*people["train"], CANARY])
    other = next(name for name in value["forget"] if name != CANARY)
    value["forget"] = sorted([other, CANARY])
    value["support"] = {other: value["support"][other], CANARY: f"{CANARY}-0.png"}
    value["reserved"] = {name: key for name, key in value["reserved"].items() if name != CANARY}
    return value


def set_places(patch: pytest.MonkeyPatch, root: Path, datasets: Any) -> None:
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(root / "datasets"))
    patch.setenv("ONESHUI_CACHE", str(root / "cache"))
    patch.setenv("ONESHUI_VAULT", str(root / "vault"))
    patch.setattr(stage, "RUNS", root / "runs")


@pytest.fixture
def root(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same state for every test, at the same place, as an artefact's secrets and a cache's keys depend on paths."""
    import datasets

    set_places(monkeypatch, made, datasets)
    for name in ("runs", "cache", "datasets", "vault"):
        shutil.rmtree(made / name, ignore_errors=True)
        shutil.copytree(made / f"{name}.saved", made / name)
    yield made


def canaries(root: Path) -> set[str]:
    """Return the files below runs and caches whose name or content has the person's name, or pixels of their photos."""
    image = np.full((3, 32, 32), 0, np.uint8) + np.array(COLOUR, np.uint8)[:, None, None]
    wanted = [CANARY.encode(), json.dumps(CANARY)[1:-1].encode(), json.dumps(json.dumps(CANARY))[3:-3].encode(), image.tobytes()[:256]]
    files = [file for name in ("runs", "cache", "datasets", "vault") for file in (root / name).rglob("*")]
    return {
        str(file.relative_to(root))
        for file in files
        if CANARY in file.name or (file.is_file() and any(part in file.read_bytes() for part in wanted))
    }


def contents(root: Path) -> dict[str, bytes]:
    files = [file for name in ("runs", "cache", "datasets", "vault") for file in (root / name).rglob("*") if file.is_file()]
    return {str(file.relative_to(root)): file.read_bytes() for file in files if "lock" not in file.name}


def actions(result: dict[str, Any], root: Path) -> dict[str, str]:
    return {row["place"].removeprefix(f"{root}/"): row["action"] for row in result["rows"]}


def test_nothing_below_runs_and_caches_names_the_person_afterwards(root: Path) -> None:
    before = canaries(root)
    assert {file.split("/")[0] for file in before} == {"runs", "cache", "datasets"}
    assert any(file.endswith(".npy") for file in before)
    weights = {file: data for file, data in contents(root).items() if file.startswith("runs") and file.endswith(f"/{'model.safetensors'}")}
    result = oneshui_hf.purge(identity=CANARY)
    assert canaries(root) == set()
    after = contents(root)
    assert {file: after[file] for file in weights} == weights
    done = actions(result, root)
    removed = {
        f"runs/a/{name}" for name in (PREDICTIONS, CURVES, "report.html", "report-figures", "checkpoint-1", "methods/.other.unfinished")
    }
    assert {place for place, action in done.items() if action == "removed" and place.startswith("runs/a/")} == removed
    assert not any((root / place).exists() for place in removed)
    assert {place for place, action in done.items() if action == "rewritten"} == {f"runs/{name}/{SPLIT}" for name in ("a", "a-oracle")}
    assert (done["runs/a/methods"], done[f"runs/a/{METRICS}"], done["weights"], done["source data, also downloads"]) == (
        *("destroyed", "kept", "kept", "kept"),
    )
    assert result["runs"] == 2
    left = Artefact.load(root / "runs/a/methods" / METHOD, METHOD, Run.open(root / "runs/a").weights)
    assert set(left.people) == {name_of(person) for person in range(3)}


def test_the_other_sets_stay_and_the_run_can_be_measured(root: Path) -> None:
    before, old = load_split(root / "runs/a" / SPLIT), oneshui_hf.Run.open(root / "runs/a").metrics
    oneshui_hf.purge(identity=CANARY)
    run = Run.open(root / "runs/a").require_split()
    split = load_split(run.path / SPLIT)
    assert run.record.split == hash_file(run.path / SPLIT)
    assert run.record.report["purged"] is True
    assert split.people == {name: [p for p in members if p != CANARY] for name, members in before.people.items()}
    assert split.forget == [name for name in before.forget if name != CANARY]
    assert set(split.support) == set(split.forget)
    assert (split.seed, split.reserved, split.meta_identities) == (before.seed, before.reserved, before.meta_identities)
    measured = oneshui_hf.evaluate(run, oracle=root / "runs/a-oracle")
    assert old is not None
    assert measured["forget"]["people"] == old["forget"]["people"] - 1
    assert measured["test"] == old["test"]
    assert measured["retain"] == old["retain"]


def test_a_dry_run_changes_nothing_and_prints_the_same(root: Path, oneshui: Oneshui) -> None:
    before = contents(root)
    planned = oneshui_hf.purge(identity=CANARY, dry_run=True)
    assert contents(root) == before
    done = oneshui_hf.purge(identity=CANARY)
    assert planned["rows"] == done["rows"]
    show_purge.purge(planned)
    code, _, err = oneshui("purge", "--identity", CANARY)
    assert (code, "contain the identity" in sentence(err)) == (2, True)


def test_only_named_runs_are_changed(root: Path) -> None:
    shutil.copytree(root / "runs/a", root / "runs/b")
    before = {file: data for file, data in contents(root).items() if file.startswith("runs/b/")}
    result = oneshui_hf.purge(identity=CANARY, run=[str(root / "runs/a")])
    assert result["runs"] == 1
    assert {file: data for file, data in contents(root).items() if file.startswith("runs/b/")} == before
    assert oneshui_hf.purge(identity=CANARY)["runs"] == 2  # the copy, and the oracle
    assert canaries(root) == set()


def test_caches_of_other_data_stay(root: Path) -> None:
    cache = Cache(root / "cache")
    with cache.entry("oracle", {"split": '{"people": ["p01", "Zoë"]}', "weights": "0"}) as folder:
        folder.mkdir()
    (other,) = {entry.key for entry in cache.entries()} - {path.name for path in (root / "cache.saved").iterdir()}
    foreign = root / "datasets/somebody___data/default"
    foreign.mkdir(parents=True)
    (arrow,) = [file for file in (root / "datasets").rglob("*.arrow") if "Quimby" in file.read_bytes().decode(errors="ignore")]
    shutil.copyfile(arrow, foreign / arrow.name)  # no data set that this package read
    oneshui_hf.purge(identity=CANARY)
    assert [entry.key for entry in cache.entries()] == [other]
    assert (foreign / arrow.name).exists()
    assert not arrow.exists()


def test_tables_that_datasets_reads_are_recognised(root: Path) -> None:
    source = root / "table.jsonl"
    rows = [{"image": str(root / f"photos/p{n:02d}-{k}.png"), "identity": n, "Smiling": k % 2} for n in (1, 2, 4, 5) for k in range(3)]
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    from oneshui_hf.data.load import load_faces

    faces = load_faces(str(source), image_column="image", identity_column="identity", label_columns=("Smiling",))
    assert "4" in faces.people
    with pytest.raises(UsageError):
        oneshui_hf.purge(identity="44", run=[str(root / "runs/a")])
    assert faces.cache.exists()
    removed = oneshui_hf.purge(identity="4", run=[str(root / "runs/a")])["rows"]
    assert [row["place"] for row in removed if row["action"] == "removed"] == [str(faces.cache.parent)]
    assert not faces.cache.exists()
    source.unlink()


@pytest.mark.parametrize("at", ["_destroy", "remove_resume_states", "remove", "write_record", "_without", "_complete_record"])
def test_an_interrupted_purge_is_repeated(root: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    whole = stage.__dict__[at]

    def stop(*arguments: Any, **options: Any) -> Any:
        if at == "_complete_record" and arguments[0].record.split is not None:
            return whole(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, at, stop)
        with pytest.raises(KeyboardInterrupt):
            oneshui_hf.purge(identity=CANARY)
    Run.open(root / "runs/a").require_split()
    oneshui_hf.purge(identity=CANARY)
    assert canaries(root) == set()
    for name in ("a", "a-oracle"):
        run = Run.open(root / "runs" / name).require_split()
        assert run.record.split == hash_file(run.path / SPLIT)


def test_a_cache_that_was_being_removed_is_removed(root: Path) -> None:
    (arrow,) = [file for file in (root / "datasets").rglob("*.arrow") if "Quimby" in file.read_bytes().decode(errors="ignore")]
    hidden = arrow.parent.with_name(f"{HIDDEN}0123")
    arrow.parent.rename(hidden)
    (hidden / arrow.name).unlink()
    oneshui_hf.purge(identity=CANARY)
    assert canaries(root) == set()
    assert not hidden.exists()


def test_unknown_identities_and_busy_runs_are_one_sentence(root: Path, oneshui: Oneshui) -> None:
    before = contents(root)
    for name in ("Quimby", "p99", "Zoë", "tiny", "synthetic"):
        code, out, err = oneshui("purge", f"--identity={name}")
        assert (code, out) == (2, ""), name
        assert "so nothing was changed" in sentence(err)
    assert "There is no run at" in sentence(oneshui("purge", "--identity", CANARY, "--run", "/nowhere")[2])
    with another_writer(root / "runs/a"), pytest.raises(OneshuiError, match="Another process"):
        oneshui_hf.purge(identity=CANARY)
    assert {f: d for f, d in contents(root).items() if f.startswith("runs/")} == {f: d for f, d in before.items() if f.startswith("runs/")}
    (root / "runs/damaged").mkdir()
    (root / "runs/damaged" / RECORD).write_text("{")
    with pytest.raises(OneshuiError, match="is not JSON"):
        oneshui_hf.purge(identity=CANARY)


def test_a_model_whose_labels_are_people_is_listed(root: Path) -> None:
    run = Run.open(root / "runs/a")
    run.record.dataset["labels"] = [CANARY, "p01"]
    write_record(run.path, run.record)
    rows = oneshui_hf.purge(identity=CANARY, dry_run=True)["rows"]
    assert [row["action"] for row in rows if "labels are names of people" in row["reason"]] == ["kept"]


@pytest.mark.parametrize("name", ["4711", CANARY, 'a"b', "a\\b", "日本", "a/b"])
def test_names_in_json_are_found_exactly(name: str) -> None:
    for content, found in (
        ({"forget": [name]}, True),
        ({name: 1}, True),
        ({"without_image": ["x", f"x/{name}"]}, "/" not in name),
        ({"forget": [f"{name}0", f"0{name}"]}, False),
        ({"seed": 4711, "path": "/47110/x"}, False),
    ):
        for ascii_only in (True, False):
            assert _mentions(json.dumps(content, ensure_ascii=ascii_only).encode(), name) == found, content
    for text in (name.encode(), b"", b"\xff"):  # words, nothing, damaged
        assert not _mentions(text, name)
