"""The rule for publishing two models of the same original, through the real client and a Hub on the loopback interface."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oneshui_hf.data.schema import Task
from oneshui_hf.models.load import save_model
from oneshui_hf.models.new import new_model
from oneshui_hf.runs import RECORD, Record, Run, hash_weights, write_record
from support.hub_client import Client
from support.hub_server import Hub

LABELS = ("Smiling", "Young")
KEYS, ONE_STEP, UNKNOWN = "forget-keys", "gradient-ascent", "not-installed"
PUBLIC = {"private": False}
NUMBERS = itertools.count()  # of the tests, since all share a Hub
ORIGINAL, OTHER = "publishes the original of this model", "publishes another model of the same original"
SHOWS = "the difference of the two models shows who was forgotten"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    machine = Client(hub, tmp_path_factory.mktemp("home"))
    yield machine
    machine.close()


@pytest.fixture
def push(client: Client) -> Callable[..., dict[str, Any]]:
    """Return a function that pushes a run to a repository of this test."""
    number = next(NUMBERS)

    def call(run: Run, name: str, **options: Any) -> dict[str, Any]:
        answer = client(
            "push",
            run=run.path,
            repo_id=f"owner/{number}-{name}",
            **options,
        )
        return {"url": answer.get("result"), "error": answer.get("error"), "warnings": " ".join(answer["warnings"])}

    return call


def make_run(path: Path, seed: int, parent: Run | None = None, method: str | None = None, people: int | None = 2) -> Run:
    """Return a run with its own weights: an original, an oracle, or an unlearned model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model, preprocess = new_model("tiny", Task("multi_label", LABELS), 32, seed)
    save_model(model, preprocess, path)
    description = {"name": "synthetic", "task": "multi_label", "labels": list(LABELS), "images": 60, "identities": 9}
    record = Record(
        kind="unlearned" if method else "oracle" if parent else "original",
        seed=seed,
        options={"dataset": "synthetic", "model": "tiny"},
        dataset=description,
        parent={"run": str(parent.path.resolve()), "weights": parent.record.weights} if parent else None,
        weights=hash_weights(path),
        report={"method": method, "people": people, "photos": 2} if method else {},
    )
    write_record(path, record)
    return Run.open(path)


def publications(run: Run) -> list[tuple[str, bool]]:
    return [(one["repo_id"].rpartition("-")[2], one["public"]) for one in Run.open(run.path).record.publications]


@pytest.mark.parametrize("method", [KEYS, UNKNOWN])
def test_a_per_identity_model_is_not_published_beside_its_original(push: Any, hub: Hub, tmp_path: Path, method: str) -> None:
    original = make_run(tmp_path / "original", 0)
    unlearned = make_run(tmp_path / "elsewhere" / "unlearned", 1, original, method)  # the record leads to the original
    assert push(original, "original", **PUBLIC)["url"]
    count = len(hub.repos)
    refused = push(unlearned, "unlearned", **PUBLIC)
    assert f"{ORIGINAL}, and {SHOWS}, so nothing was sent." in refused["error"]
    for way_out in ("--min-batch", "replace the public model", "oneshui retrain", "--difference-is-public"):
        assert way_out in refused["error"]
    assert len(hub.repos) == count  # no repository was created
    assert publications(unlearned) == []
    assert push(unlearned, "unlearned", **PUBLIC, difference_is_public=True)["url"]
    assert publications(unlearned) == [("unlearned", True)]


def test_a_private_push_is_allowed_and_noted(push: Any, tmp_path: Path) -> None:
    original = make_run(tmp_path / "original", 0)
    unlearned = make_run(tmp_path / "unlearned", 1, original, KEYS)
    assert push(original, "original", **PUBLIC)["url"]
    assert push(unlearned, "unlearned")["url"]
    assert publications(unlearned) == [("unlearned", False)]


def test_the_original_is_not_published_after_an_unlearned_model(push: Any, tmp_path: Path) -> None:
    original = make_run(tmp_path / "original", 0)
    unlearned = make_run(tmp_path / "unlearned", 1, original, KEYS)
    assert push(unlearned, "unlearned", **PUBLIC)["url"]
    assert OTHER in push(original, "original", **PUBLIC)["error"]


def test_two_releases_of_the_same_original_are_related(push: Any, tmp_path: Path) -> None:
    original = make_run(tmp_path / "original", 0)
    first = make_run(tmp_path / "first", 1, original, KEYS)
    second = make_run(tmp_path / "second", 2, first, KEYS)
    sibling = make_run(tmp_path / "sibling", 3, original, ONE_STEP)
    assert push(first, "first", **PUBLIC)["url"]
    assert OTHER in push(second, "second", **PUBLIC)["error"]
    assert OTHER in push(sibling, "sibling", **PUBLIC)["error"]  # the difference of the two contains the first one's update


def test_models_of_other_originals_are_not_related(push: Any, tmp_path: Path) -> None:
    originals = [make_run(tmp_path / f"original{seed}", seed) for seed in (0, 1)]
    unlearned = make_run(tmp_path / "unlearned", 2, originals[0], KEYS)
    assert push(originals[1], "other", **PUBLIC)["url"]
    pushed = push(unlearned, "unlearned", **PUBLIC)
    assert (pushed["error"], pushed["warnings"]) == (None, "")


def test_other_methods_and_oracles_get_a_warning(push: Any, tmp_path: Path) -> None:
    original = make_run(tmp_path / "original", 0)
    assert push(original, "original", **PUBLIC)["url"]
    for seed, run in enumerate((make_run(tmp_path / "step", 1, original, ONE_STEP), make_run(tmp_path / "oracle", 2, original))):
        pushed = push(run, f"run{seed}", **PUBLIC)
        assert pushed["error"] is None
        assert f"{SHOWS}, to some degree even after retraining" in pushed["warnings"]


def test_a_repository_that_is_no_longer_public_does_not_count(push: Any, hub: Hub, tmp_path: Path) -> None:
    original = make_run(tmp_path / "original", 0)
    unlearned = make_run(tmp_path / "unlearned", 1, original, KEYS)
    assert push(original, "original", **PUBLIC)["url"]
    (repo_id,) = [one["repo_id"] for one in Run.open(original.path).record.publications]
    hub.repos[repo_id].private = True
    assert push(unlearned, "unlearned", **PUBLIC)["url"]


def test_a_repository_that_became_public_on_the_hub_counts(push: Any, hub: Hub, tmp_path: Path) -> None:
    original = make_run(tmp_path / "original", 0)
    unlearned = make_run(tmp_path / "unlearned", 1, original, KEYS)
    assert push(original, "original")["url"]
    (repo_id,) = [one["repo_id"] for one in Run.open(original.path).record.publications]
    hub.repos[repo_id].private = False
    assert ORIGINAL in push(unlearned, "unlearned", **PUBLIC)["error"]


def test_a_pulled_original_is_public(push: Any, client: Client, hub: Hub, tmp_path: Path) -> None:
    published = make_run(tmp_path / "published" / "original", 0)
    edited = replace(published.record, publications=[{"repo_id": "nobody/else", "public": True}])
    write_record(published.path, edited)
    url = push(published, "original", **PUBLIC)["url"]
    repo_id = "/".join(url.removeprefix(hub.url).split("/")[1:3])
    shutil.rmtree(published.path)
    pulled = Run.open(client("pull", repo_id=repo_id, output_dir=tmp_path / "pulled")["result"])
    assert pulled.record.publications == [{"repo_id": repo_id, "public": True}]
    unlearned = make_run(tmp_path / "unlearned", 1, pulled, KEYS)
    assert ORIGINAL in push(unlearned, "unlearned", **PUBLIC)["error"]


def test_a_missing_original_may_be_public(push: Any, tmp_path: Path) -> None:
    original = make_run(tmp_path / "original", 0)
    unlearned = make_run(tmp_path / "unlearned", 1, original, KEYS)
    shutil.rmtree(original.path)
    assert "whether that model is public is unknown" in push(unlearned, "unlearned", **PUBLIC)["error"]
    assert push(unlearned, "unlearned", **PUBLIC, difference_is_public=True)["url"]


def test_a_release_of_too_few_people_is_refused_and_one_of_a_single_person_warned_of(push: Any, tmp_path: Path) -> None:
    original = make_run(tmp_path / "original", 0)
    two, one, unknown = (
        make_run(tmp_path / f"people{people}", seed, original, KEYS, people) for seed, people in enumerate((2, 1, None), start=1)
    )
    assert "forgets 2 of the 3 identities that --min-batch requires" in push(two, "two", **PUBLIC, min_batch=3)["error"]
    assert "is unknown, so --min-batch 2 cannot be checked" in push(unknown, "unknown", **PUBLIC, min_batch=2)["error"]
    assert "forgets a single identity" in push(one, "one", **PUBLIC)["warnings"]
    assert push(two, "two", **PUBLIC, min_batch=2, difference_is_public=True)["warnings"] == ""


def test_what_is_noted_is_not_published(push: Any, hub: Hub, tmp_path: Path) -> None:
    original = make_run(tmp_path / "original", 0)
    assert push(original, "first")["url"]
    assert push(original, "second")["url"]
    assert publications(original) == [("first", False), ("second", False)]
    (repo_id,) = [name for name in hub.repos if name.endswith("second")][-1:]
    assert "publications" not in json.loads(hub.files(repo_id)[RECORD]) or not json.loads(hub.files(repo_id)[RECORD])["publications"]
    assert publications(Run.open(original.path)) == [("first", False), ("second", False)]
