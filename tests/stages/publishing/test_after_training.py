"""`train --push-to-hub`, `--dataset-revision` and `--model-revision`, with the real client and a Hub on the loopback interface."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load

from oneshui_hf.data.load import load_faces
from oneshui_hf.data.schema import Task
from oneshui_hf.models.load import save_model
from oneshui_hf.models.new import new_model
from oneshui_hf.runs import Run
from oneshui_hf.stages.publishing.dataset import collect_dataset_files
from support.card_rules import header, problems
from support.commands import Oneshui, sentence
from support.faces import write_photos
from support.hub_client import Client
from support.hub_server import Hub

DATASET, BACKBONE = "owner/people", "owner/backbone"
Train = Callable[..., dict[str, Any]]


def a_data_set(seed: int) -> dict[str, bytes]:
    """Return the files of a data set on the Hub; the seed changes the number of photos."""
    with tempfile.TemporaryDirectory() as scratch:
        photos, files = Path(scratch) / "photos", Path(scratch) / "files"
        photos.mkdir()
        files.mkdir()
        write_photos(photos, people=9, photos=3 + seed, name_of="person{}".format)
        collect_dataset_files(load_faces(str(photos)), files, keep_names=True)
        return {file.relative_to(files).as_posix(): file.read_bytes() for file in files.rglob("*") if file.is_file()}


def a_backbone(seed: int) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as scratch:
        save_model(*new_model("tiny", Task("multi_label", ("a", "b")), 32, seed), Path(scratch))
        return {file.name: file.read_bytes() for file in Path(scratch).iterdir()}


@pytest.fixture(scope="module")
def sources(hub: Hub) -> dict[str, str]:
    """Put a data set and a backbone on the Hub, each with a tag v1 that main has left; return the commits of the tags."""
    commits = {}
    for repo_id, make in ((f"datasets/{DATASET}", a_data_set), (BACKBONE, a_backbone)):
        for seed in (0, 1):
            hub.add(repo_id, make(seed), private=False)
            repo = hub.repos[repo_id]
            repo.tags.setdefault("v1", repo.branches["main"])
        commits[repo_id] = repo.tags["v1"]
    return commits


@pytest.fixture
def train(client: Client, sources: dict[str, str], tmp_path: Path) -> Train:
    """Return a function that trains on the two repositories, without a change of the backbone."""
    del sources
    return lambda **options: client(
        "train", **{"dataset": DATASET, "model": BACKBONE, "epochs": 1, "lr": 0, "forget": 1, "output_dir": tmp_path / "run", **options}
    )


def backbone_of(run: Path, key: str) -> Any:
    return load((run / "model.safetensors").read_bytes())[key]


def test_revisions_are_recorded_and_used_again(hub: Hub, client: Client, train: Train, sources: dict[str, str], tmp_path: Path) -> None:
    commit = sources[BACKBONE]
    trained = train(dataset_revision="v1", model_revision=commit)
    assert trained.get("result") == str(tmp_path / "run"), trained
    record = Run.open(tmp_path / "run").record
    assert (record.options["dataset_revision"], record.options["model_revision"]) == ("v1", commit)
    assert record.dataset["images"] == 27  # main has more
    first, second = (load(hub.files(BACKBONE, name)["model.safetensors"]) for name in (commit, "main"))
    key = next(name for name in first if name.endswith("query.weight"))
    assert not first[key].equal(second[key])
    assert backbone_of(tmp_path / "run", key).equal(first[key])
    assert client("retrain", run=tmp_path / "run").get("result") == str(tmp_path / "run-oracle")
    assert backbone_of(tmp_path / "run-oracle", key).equal(first[key])
    assert Run.open(tmp_path / "run-oracle").record.dataset["images"] == 27
    # The commit of a public backbone is published, the name of a branch or tag is not.
    client("push", run=tmp_path / "run", repo_id="owner/revisions")
    published = json.loads(hub.files("owner/revisions")["oneshui.json"])["options"]
    assert published["model_revision"] == commit
    assert "dataset_revision" not in published

    plain = train(output_dir=tmp_path / "plain")
    assert plain.get("result"), plain
    assert Run.open(tmp_path / "plain").record.dataset["images"] == 36
    assert backbone_of(tmp_path / "plain", key).equal(second[key])
    assert f"{DATASET} has no revision 'v9'" in train(dataset_revision="v9", output_dir=tmp_path / "x")["error"]
    assert f"'{BACKBONE}' with revision 'v9' does not exist" in train(model_revision="v9", output_dir=tmp_path / "x")["error"]
    assert not (tmp_path / "x").exists()


def test_a_trained_model_is_published_in_a_private_repository(hub: Hub, train: Train, tmp_path: Path) -> None:
    trained = train(push_to_hub="owner/trained")
    assert trained.get("result") == str(tmp_path / "run"), trained
    assert any("Published: " in note for note in trained["notes"])
    assert hub.repos["owner/trained"].private
    card = hub.files("owner/trained")["README.md"].decode()
    assert problems(card) == []
    assert (header(card)["datasets"], header(card)["base_model"]) == ([DATASET], BACKBONE)
    record = Run.open(tmp_path / "run").record
    assert record.options["push_to_hub"] is None
    assert record.publications == [{"repo_id": "owner/trained", "public": False}]
    # A finished run is published by --resume, too.
    again = train(push_to_hub="owner/again", resume=True)
    assert again.get("result"), again
    assert hub.files("owner/again")["model.safetensors"] == hub.files("owner/trained")["model.safetensors"]


@pytest.mark.parametrize(
    ("repo_id", "token", "reason"),
    [
        ("owner/name", None, "You are not logged in to the Hub"),
        ("owner/name", "hf_wrong", "log in with another token"),
        ("other/name", "hf_owner", "You are logged in to the Hub as owner, who cannot create other/name; name owner/name."),
        ("a/b/c", "hf_owner", "'a/b/c' is not the name of a repository"),
        ("owner/open", "hf_owner", "owner/open is public, so nothing was sent"),
    ],
)
def test_what_push_would_refuse_is_refused_before_the_training(
    hub: Hub, train: Train, tmp_path: Path, repo_id: str, token: str | None, reason: str
) -> None:
    hub.add("owner/open", {}, private=False)
    assert reason in train(push_to_hub=repo_id, token=token)["error"]
    assert not (tmp_path / "run").exists()
    assert "owner/name" not in hub.repos


def test_labels_that_name_people_are_refused_before_the_training(hub: Hub, train: Train, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    write_photos(photos, people=9, photos=3, name_of="person{}".format)
    rows = [line.split(",")[:2] for line in (photos / "metadata.csv").read_text().splitlines()[1:]]
    (photos / "metadata.csv").write_text("\n".join(["file_name,identity,label", *(f"{name},{who},{who}" for name, who in rows)]))
    refused = train(dataset=photos, model="tiny", push_to_hub="owner/named")["error"]
    assert "Labels of this data are names of its identities" in refused
    assert "person" not in refused
    assert not (tmp_path / "run").exists()
    assert "owner/named" not in hub.repos


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--dataset", "synthetic", "--dataset-revision", "v1"], "--dataset-revision applies to data sets of the Hub, not to 'synthetic'"),
        (
            ["--dataset", "synthetic", "--model", "tiny", "--model-revision", "v1"],
            "--model-revision applies to models of the Hub, not to 'tiny'",
        ),
        (["--dataset", "synthetic", "--push-to-hub", "owner/name"], "You are not logged in to the Hub"),
    ],
)
def test_a_wrong_value_is_one_sentence(oneshui: Oneshui, tmp_path: Path, words: list[str], reason: str) -> None:
    code, _, err = oneshui("train", *words, "--output-dir", tmp_path / "run")
    assert code == 2
    assert reason in sentence(err)
    assert not (tmp_path / "run").exists()
