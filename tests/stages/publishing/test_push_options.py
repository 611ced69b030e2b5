"""`push --create-pr --token --tags --license`, what the card says by them, and the order of the refusals."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from oneshui_hf.data.schema import Task
from oneshui_hf.data.split import Split
from oneshui_hf.models.load import save_model
from oneshui_hf.models.new import new_model
from oneshui_hf.runs import CONFIG, PREPROCESSOR, SPLIT, Record, Run, hash_settings, hash_weights, write_record
from oneshui_hf.stages.publishing.difference import public_dataset
from oneshui_hf.stages.publishing.options import PushOptions
from support.card_rules import header, problems
from support.commands import Oneshui, sentence
from support.hub_client import Client
from support.hub_server import Hub

PERSON, DATASET = "Ada Lovelace", "owner/people"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("runs") / "original")


def make_run(path: Path, labels: tuple[str, ...] = ("Smiling", "Young")) -> Run:
    model, preprocess = new_model("tiny", Task("multi_label", labels), 32, 0)
    save_model(model, preprocess, path)
    options = {"dataset": DATASET, "model": "tiny", "data_dir": None, "dataset_revision": "study-of-ada"}
    dataset = {"name": DATASET, "task": "multi_label", "labels": list(labels), "images": 60, "identities": 9}
    record = Record("original", 0, options, dataset, weights=hash_weights(path), settings=hash_settings(path))
    write_record(path, record)
    Split(0, {"train": [PERSON], "val": [], "test": []}, [PERSON], {PERSON: "1.jpg"}, {}, "all").save(path / SPLIT)
    return Run.open(path)


def card(hub: Hub, repo_id: str, revision: str = "main") -> str:
    return hub.files(repo_id, revision)["README.md"].decode()


def test_card_has_the_given_licence_and_tags_and_the_public_data_set(hub: Hub, client: Client, run: Run) -> None:
    hub.add(f"datasets/{DATASET}", {}, private=False)
    assert "result" in client("push", run=run.path, repo_id="owner/given", license="cc-by-4.0", tags="faces, study:one")
    given = header(card(hub, "owner/given"))
    assert problems(card(hub, "owner/given")) == []
    assert (given["license"], given["datasets"]) == ("cc-by-4.0", [DATASET])
    assert {"faces", "study:one", "oneshui", "arxiv:2407.12069"} <= set(given["tags"])
    assert "study-of-ada" not in hub.files("owner/given")["oneshui.json"].decode()  # the name of a branch may be anything


def test_card_names_no_private_data_set_and_no_licence_that_was_not_given(hub: Hub, client: Client, run: Run) -> None:
    for private in (True, None):  # not readable by everybody; absent
        hub.repos.pop(f"datasets/{DATASET}", None)
        if private:
            hub.add(f"datasets/{DATASET}", {}, private=True)
        assert "result" in client("push", run=run.path, repo_id="owner/plain")
        assert problems(card(hub, "owner/plain")) == []
        plain = header(card(hub, "owner/plain"))
        assert plain["license"] == "unknown"
        assert "datasets" not in plain
        assert DATASET not in card(hub, "owner/plain") + hub.files("owner/plain")["oneshui.json"].decode()


def test_a_local_folder_is_never_linked_to_a_public_data_set_of_the_same_name() -> None:
    public: Any = SimpleNamespace(dataset_info=lambda *_, **__: SimpleNamespace(private=False))
    for data_dir, expected in ((None, DATASET), ("/data", None)):
        trained: Any = SimpleNamespace(record=SimpleNamespace(options={"dataset": DATASET, "data_dir": data_dir}))
        assert public_dataset(trained, public) == expected


def test_create_pr_opens_a_pull_request_in_the_repository_of_another_user(hub: Hub, client: Client, run: Run) -> None:
    hub.add("other/open", {"README.md": b"theirs"}, private=False)
    answer = client("push", run=run.path, repo_id="other/open", create_pr=True, private=False)
    assert answer["result"] == f"{hub.url}/other/open/discussions/1"
    assert hub.files("other/open")["README.md"] == b"theirs"
    assert "model.safetensors" in hub.files("other/open", "refs/pr/1")
    assert Run.open(run.path).record.publications[-1] == {"repo_id": "other/open", "public": True}
    # Without --public, nothing is sent to a public repository; and none is created.
    assert "a private repository was requested" in client("push", run=run.path, repo_id="other/open", create_pr=True)["error"]
    assert "does not exist" in client("push", run=run.path, repo_id="other/absent", create_pr=True)["error"]
    assert "other/absent" not in hub.repos
    assert "denies you this access" in client("push", run=run.path, repo_id="other/open", private=False)["error"]


def test_token_is_used_and_stored_nowhere(hub: Hub, client: Client, run: Run) -> None:
    pushed = client("push", token=None, token_option="hf_owner", run=run.path, repo_id="owner/token")
    assert pushed["result"].startswith(f"{hub.url}/owner/token/commit/")
    assert "hf_owner" not in "".join(file.read_text(errors="replace") for file in run.path.rglob("*") if file.is_file())
    assert not any(b"hf_owner" in content for content in hub.files("owner/token").values())
    assert not any(b"hf_owner" in request.body for request in hub.requests)  # it is in headers only
    refused = client("push", token=None, token_option="hf_wrong", run=run.path, repo_id="owner/token")
    assert "log in with another token" in refused["error"]
    assert "hf_wrong" not in json.dumps(refused)
    assert "hf_owner" not in repr(PushOptions(repo_id="a/b", token="hf_owner"))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--license", "apache2"], "--license takes an identifier of the Hub, such as apache-2.0, or 'other', not 'apache2'."),
        (["--tags", "good,<b>"], "--tags takes words of letters, digits and"),
        (["--token", "hf secret"], "--token is not a token of the Hub"),
        (["--create-pr=yes"], "--create-pr takes no value"),
    ],
)
def test_a_wrong_value_is_one_sentence_before_a_login_is_asked_for(oneshui: Oneshui, run: Run, words: list[str], reason: str) -> None:
    code, _, err = oneshui("push", run.path, "owner/name", *words)
    assert code == 2
    assert reason in sentence(err)
    assert "hf secret" not in err


def test_a_tag_that_is_the_name_of_a_person_is_refused(oneshui: Oneshui, run: Run) -> None:
    code, _, err = oneshui("push", run.path, "owner/name", "--tags", f"faces,{PERSON}")
    assert code == 1
    assert "--tags contains the name of an identity" in sentence(err)
    assert PERSON not in err


def test_labels_that_name_people_are_refused_without_a_login(oneshui: Oneshui, run: Run, tmp_path: Path) -> None:
    named = make_run(tmp_path / "named", ("Smiling", PERSON))
    assert "names of its identities" in sentence(oneshui("push", named.path, "owner/name")[2])
    code, _, err = oneshui("push", run.path, "owner/name")
    assert code == 2
    assert "You are not logged in to the Hub" in sentence(err)


@pytest.mark.parametrize("file", [CONFIG, PREPROCESSOR])
def test_a_changed_configuration_is_refused_when_it_is_loaded_pushed_or_pulled(hub: Hub, client: Client, tmp_path: Path, file: str) -> None:
    from oneshui_hf.errors import OneshuiError
    from oneshui_hf.models.load import load_model

    run = make_run(tmp_path / "original")
    client("push", run=run.path, repo_id=f"owner/{file}")
    assert "result" in client("pull", repo_id=f"owner/{file}", output_dir=tmp_path / "pulled")
    assert Run.open(tmp_path / "pulled").require_complete().record.settings == hash_settings(tmp_path / "pulled")
    published = hub.files(f"owner/{file}")[file]
    hub.add(f"owner/{file}", {file: published.replace(b"{", b"{ ", 1)})
    refused = client("pull", repo_id=f"owner/{file}", output_dir=tmp_path / "tampered")["error"]
    assert "does not match its record" in refused
    assert not (tmp_path / "tampered").exists()

    changed: Any = json.loads((run.path / file).read_text())
    (run.path / file).write_text(json.dumps(changed | {"note": 1}))
    reason = f"{file} is not the one of its record"
    with pytest.raises(OneshuiError, match=reason):
        load_model(run.path)
    assert reason in client("push", run=run.path, repo_id="owner/changed")["error"]
    record = run.record
    record.settings = {}  # a run of an earlier version
    write_record(run.path, record)
    load_model(run.path)
