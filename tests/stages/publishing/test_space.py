"""`push --space`: what is sent, how private it is, and that it is the same page. `tests/app/test_server.py` runs the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from oneshui_hf.errors import UsageError
from oneshui_hf.methods.identity_store import BLOBS, INDEX
from oneshui_hf.stages.publishing.options import PushOptions
from oneshui_hf.stages.publishing.space import GRADIO, check_space
from support.hub_client import Client
from support.hub_server import Hub

PAGE_FILES = {".gitattributes", "README.md", "app.py", "requirements.txt"}
SPACE = "spaces/owner/page"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as training writes it, with the public part of an artefact and encrypted data of single people."""
    from oneshui_hf.data.schema import Task
    from oneshui_hf.models.load import save_model
    from oneshui_hf.models.new import new_model
    from oneshui_hf.runs import Record, hash_settings, hash_weights, write_record

    path = tmp_path_factory.mktemp("runs") / "quimby7319"
    path.mkdir()
    model, preprocess = new_model("tiny", Task("multi_label", ("Smiling", "Young")), 32, 0)
    save_model(model, preprocess, path)
    dataset = {"name": "/home/quimby7319", "fingerprint": "a" * 64, "task": "multi_label", "labels": ["Smiling", "Young"]}
    record = Record(kind="original", seed=3, options={}, dataset=dataset, weights=hash_weights(path), report={})
    record.settings = hash_settings(path)
    write_record(path, record)
    return path


def files(hub: Hub, repo_id: str) -> dict[str, bytes]:
    repo = hub.repos[repo_id]
    return repo.commits[repo.branches["main"]]


def push(client: Client, run: Path, **step: Any) -> Any:
    return client("push", token="hf_owner", run=str(run), repo_id="owner/model", **({"space": "owner/page"} | step))


def test_a_space_is_private_and_has_the_page_and_the_models_public_files(hub: Hub, client: Client, run: Path) -> None:
    answer = push(client, run)
    assert "result" in answer, answer
    assert any("owner/page" in note for note in answer["notes"])
    assert hub.repos[SPACE].private
    sent, model = files(hub, SPACE), files(hub, "owner/model")
    assert set(sent) == PAGE_FILES | {f"model/{name}" for name in set(model) - {".gitattributes", "README.md"}}
    assert all(sent[f"model/{name}"] == data for name, data in model.items() if f"model/{name}" in sent)
    assert b"quimby7319" not in b"".join(sent.values())
    compile(sent["app.py"], "app.py", "exec")
    assert sent["requirements.txt"].startswith(b"oneshui-hf[app]==")
    header = yaml.safe_load(sent["README.md"].decode().split("---")[1])
    assert {name: header[name] for name in ("sdk", "sdk_version", "app_file", "models")} == {
        "sdk": "gradio", "sdk_version": GRADIO, "app_file": "app.py", "models": ["owner/model"],
    }  # fmt: skip


def test_a_second_push_replaces_the_files_of_the_first_and_keeps_those_of_others(hub: Hub, client: Client, run: Path) -> None:
    push(client, run)
    repo = hub.repos[SPACE]
    repo.commit("main", files(hub, SPACE) | {"notes.txt": b"mine", "config.json": b"mine", "model/methods/old/artefact.json": b"{}"})
    push(client, run)
    left = files(hub, SPACE)
    assert {"notes.txt", "config.json"} <= set(left)
    assert "model/methods/old/artefact.json" not in left


def test_a_space_is_not_public_if_the_model_is_private(hub: Hub, client: Client, run: Path) -> None:
    push(client, run)
    hub.repos[SPACE].private = False
    try:
        before = files(hub, SPACE)
        assert "owner/page is public, so nothing was sent" in push(client, run)["error"]
        assert files(hub, SPACE) == before
    finally:
        hub.repos[SPACE].private = True


def test_data_of_single_people_is_not_in_a_space(tmp_path: Path) -> None:
    from oneshui_hf.stages.publishing.space import write_space

    public, folder = tmp_path / "public", tmp_path / "space"
    (public / "methods" / "keys").mkdir(parents=True)
    folder.mkdir()
    for name in ("artefact.json", "artefact.safetensors", INDEX, BLOBS):
        (public / "methods" / "keys" / name).write_text(json.dumps(name))
    (public / "README.md").write_text("card")
    write_space(folder, public, "owner/model")
    assert sorted(file.name for file in (folder / "model" / "methods" / "keys").iterdir()) == ["artefact.json", "artefact.safetensors"]
    assert not (folder / "model" / "README.md").exists()
    shutil.rmtree(folder)


def test_a_space_and_a_pull_request_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="excludes --create-pr"):
        check_space(PushOptions(repo_id="a/b", space="a/c", create_pr=True))
    check_space(PushOptions(repo_id="a/b", space="a/c"))


def test_the_hub_installs_a_version_that_the_extra_allows() -> None:
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    (gradio,) = [found for line in project["optional-dependencies"]["app"] if (found := Requirement(line)).name == "gradio"]
    assert GRADIO in gradio.specifier
