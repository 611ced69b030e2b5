"""The rule for publishing two models of the same original, through the real client and a Hub on the loopback interface."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from oneshui_hf.data.schema import Task
from oneshui_hf.models.load import save_model
from oneshui_hf.models.new import new_model
from oneshui_hf.runs import RECORD, Record, Run, hash_weights, write_record
from support import hub_server
from support.hub_client import Client
from support.hub_server import ErrorResponse, Hub

LABELS = ("Smiling", "Young")
KEYS, ONE_STEP, UNKNOWN = "forget-keys", "gradient-ascent", "not-installed"
PUBLIC = {"private": False}
NUMBERS = itertools.count()  # of the tests, since all share a Hub
ORIGINAL, OTHER = "publishes the original of this model", "publishes another model of the same original"
SHOWS = "the difference of the two models shows who was forgotten"


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


def published(run: Run) -> list[tuple[str, bool]]:
    return [(one["repo_id"], one["public"]) for one in Run.open(run.path).record.publications]


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


@pytest.mark.parametrize("people", [1, None])
def test_a_single_request_is_not_published_beside_its_original(push: Any, tmp_path: Path, people: int | None) -> None:
    original = make_run(tmp_path / "original", 0)
    unlearned = make_run(tmp_path / "unlearned", 1, original, ONE_STEP, people)
    assert push(original, "original", **PUBLIC)["url"]
    assert f"{ORIGINAL}, and {SHOWS}, so nothing was sent." in push(unlearned, "unlearned", **PUBLIC)["error"]
    assert publications(unlearned) == []
    assert push(unlearned, "unlearned", **PUBLIC, difference_is_public=True)["url"]


def test_the_original_is_not_published_after_a_single_request(push: Any, tmp_path: Path) -> None:
    original = make_run(tmp_path / "original", 0)
    assert push(make_run(tmp_path / "unlearned", 1, original, ONE_STEP, people=1), "unlearned", **PUBLIC)["url"]
    assert OTHER in push(original, "original", **PUBLIC)["error"]


def test_several_requests_by_other_methods_and_oracles_get_a_warning(push: Any, tmp_path: Path) -> None:
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


def repository(run: Run) -> str:
    """Return the only repository that a run was pushed to."""
    (repo_id,) = [one["repo_id"] for one in Run.open(run.path).record.publications]
    return str(repo_id)


def replace_on_hub(hub: Hub, repo_id: str, run: Run) -> None:
    """Add a revision with other weights to a repository."""
    hub.add(repo_id, {"model.safetensors": (run.path / "model.safetensors").read_bytes(), RECORD: (run.path / RECORD).read_bytes()})


def test_a_repository_counts_until_its_earlier_revisions_have_ended(push: Any, client: Client, hub: Hub, tmp_path: Path) -> None:
    original = make_run(tmp_path / "original", 0)
    unlearned = make_run(tmp_path / "unlearned", 1, original, KEYS)
    assert push(original, "original", **PUBLIC)["url"]
    repo_id = repository(original)
    replace_on_hub(hub, repo_id, make_run(tmp_path / "another" / "oracle", 2))
    refused = push(unlearned, "unlearned", **PUBLIC)["error"]
    assert ORIGINAL in refused
    assert "`oneshui hub squash`" in refused
    hub.repos[repo_id].tags["v1"] = hub.repos[repo_id].history(hub.repos[repo_id].branches["main"])[1]
    assert client("squash_history", repo_id=repo_id, yes=True, confirm=repo_id)["result"]["kept_by"] == ["v1"]
    assert ORIGINAL in push(unlearned, "unlearned", **PUBLIC)["error"]  # the tag still contains it
    del hub.repos[repo_id].tags["v1"]
    assert client("squash_history", repo_id=repo_id, yes=True, confirm=repo_id)["result"]["deleted"]
    assert push(unlearned, "unlearned", **PUBLIC)["url"]


def test_a_space_counts_until_its_earlier_revisions_have_ended(push: Any, client: Client, hub: Hub, tmp_path: Path) -> None:
    original = make_run(tmp_path / "original", 0)
    unlearned = make_run(tmp_path / "unlearned", 1, original, KEYS)
    space = f"spaces/owner/page{next(NUMBERS)}"
    assert push(original, "original", **PUBLIC, space=space.removeprefix("spaces/"))["url"]
    [repo_id] = [name for name, _ in published(original) if name != space]
    hub.repos[repo_id].private = True
    refused = push(unlearned, "unlearned", **PUBLIC)["error"]
    assert f"{space} {ORIGINAL}" in refused
    other = make_run(tmp_path / "another" / "oracle", 2)
    files = {f"model/{name}": (other.path / name).read_bytes() for name in ("model.safetensors", RECORD)}
    hub.add(space, files)
    listed = client("list_revisions", repo_id=space)["result"]
    assert listed["head"] == other.record.weights
    assert [row["weights"] for row in listed["revisions"]] == [other.record.weights, original.record.weights, None]
    assert ORIGINAL in push(unlearned, "unlearned", **PUBLIC)["error"]
    [deleted] = client("squash_history", repo_id=space, yes=True, confirm=space)["result"]["deleted"]
    assert deleted["file"] == "model/model.safetensors"
    assert push(unlearned, "unlearned", **PUBLIC)["url"]


def test_a_card_does_not_name_a_space_as_base_model(push: Any, hub: Hub, tmp_path: Path) -> None:
    original = make_run(tmp_path / "original", 0)
    assert push(original, "original", **PUBLIC, space=f"owner/page{next(NUMBERS)}")["url"]
    [repo_id] = [name for name, _ in published(original) if not name.startswith("spaces/")]
    del hub.repos[repo_id]  # the Space alone has the weights now
    unlearned = make_run(tmp_path / "unlearned", 1, original, ONE_STEP)
    assert push(unlearned, "unlearned", **PUBLIC)["url"]
    assert b"base_model" not in hub.files(published(unlearned)[0][0])["README.md"]


def test_a_private_space_does_not_count(push: Any, hub: Hub, tmp_path: Path) -> None:
    original = make_run(tmp_path / "original", 0)
    assert push(original, "original", private=True, space=f"owner/page{next(NUMBERS)}")["url"]
    assert [public for _, public in published(original)] == [False, False]
    assert push(make_run(tmp_path / "unlearned", 1, original, KEYS), "unlearned", **PUBLIC)["url"]


def test_a_repository_with_too_many_or_unknown_revisions_counts(push: Any, hub: Hub, tmp_path: Path) -> None:
    original = make_run(tmp_path / "original", 0)
    unlearned = make_run(tmp_path / "unlearned", 1, original, KEYS)
    assert push(original, "original", **PUBLIC)["url"]
    repo = hub.repos[repository(original)]
    for number in range(5):
        repo.commit("main", {"count": str(number).encode()})
    repo.commit("main", {"count": b"none"}, squash=True)
    for number in range(6):
        repo.commit("main", {"count": str(number).encode()})
    assert ORIGINAL in push(unlearned, "unlearned", **PUBLIC, max_commits=6)["error"]
    assert push(unlearned, "unlearned", **PUBLIC, max_commits=7)["url"]


def test_a_repository_whose_revisions_the_hub_does_not_list_counts(
    push: Any, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = make_run(tmp_path / "original", 0)
    unlearned = make_run(tmp_path / "unlearned", 1, original, KEYS)
    assert push(original, "original", **PUBLIC)["url"]
    hub.repos[repository(original)].commit("main", {}, squash=True)

    def gated(*_: object) -> None:
        raise ErrorResponse(403, message="Access to this model is restricted")

    with monkeypatch.context() as patch:
        patch.setattr(hub_server._Handler, "_refs", gated)
        assert ORIGINAL in push(unlearned, "unlearned", **PUBLIC)["error"]
    assert push(unlearned, "unlearned", **PUBLIC)["url"]


def card_header(hub: Hub, repo_id: str) -> dict[str, Any]:
    card = hub.files(repo_id)["README.md"].decode()
    header: dict[str, Any] = yaml.safe_load(card.split("---")[1])
    base = header.get("base_model")
    assert (f"| Base model | `{base}` |" in card) == (base is not None)
    return header


@pytest.mark.parametrize(("original_is_private", "is_private"), itertools.product([False, True], repeat=2))
def test_a_card_names_the_repository_of_the_original_that_its_readers_can_read(
    push: Any, client: Client, hub: Hub, tmp_path: Path, original_is_private: bool, is_private: bool
) -> None:
    original = make_run(tmp_path / "original", 0)
    unlearned = make_run(tmp_path / "unlearned", 1, original, KEYS)
    second = make_run(tmp_path / "second", 2, unlearned, KEYS)
    assert push(original, "original", private=original_is_private)["url"]
    for number, run in enumerate((unlearned, second)):  # the second one was computed from a model that is not published there
        assert push(run, f"unlearned{number}", private=is_private, difference_is_public=True)["url"]
        write_record(run.path, replace(Run.open(run.path).record, publications=[]))
        repo_id = [name for name in hub.repos if name.endswith(f"unlearned{number}")][-1]
        header = card_header(hub, repo_id)
        if original_is_private and not is_private:
            assert header.keys() & {"base_model", "base_model_relation"} == set()
            assert repository(original) not in hub.files(repo_id)["README.md"].decode()
        else:
            assert (header["base_model"], header["base_model_relation"]) == (repository(original), "finetune")
            assert repo_id in [row["model"] for row in client("list_derived_models", repo_id=repository(original))["result"]["models"]]
        assert "## Receipt" in hub.files(repo_id)["README.md"].decode()
    assert "base_model" not in card_header(hub, repository(original))
    assert "## Receipt" not in hub.files(repository(original))["README.md"].decode()


def test_a_card_names_no_repository_that_contains_other_weights_or_itself(push: Any, hub: Hub, tmp_path: Path) -> None:
    original = make_run(tmp_path / "original", 0)
    unlearned = make_run(tmp_path / "unlearned", 1, original, KEYS)
    assert push(original, "model")["url"]
    repo_id = repository(original)
    assert push(unlearned, "model")["url"]  # in the same repository
    assert repository(unlearned) == repo_id
    assert "base_model" not in card_header(hub, repo_id)
    assert push(unlearned, "second")["url"]
    second = [name for name in hub.repos if name.endswith("second")][-1]
    assert card_header(hub, second)["base_model"] == repo_id  # an earlier revision contains the original
    hub.repos[repo_id].commit("main", hub.files(repo_id), squash=True)
    assert push(unlearned, "second")["url"]
    assert "base_model" not in card_header(hub, second)


def test_a_published_receipt_has_no_number_of_a_single_photo(push: Any, hub: Hub, tmp_path: Path) -> None:
    unlearned = make_run(tmp_path / "unlearned", 1, make_run(tmp_path / "original", 0), KEYS)
    of_photos = {"support_loss": {"before": [0.25], "after": [4.5]}, "similarity": [0.75], "lead": [0.5]}
    receipt = unlearned.record.report | {"found_by": "photo", "destroyed": 2, "threshold": 0.625} | of_photos
    write_record(unlearned.path, replace(unlearned.record, report=receipt))
    assert push(Run.open(unlearned.path), "unlearned")["url"]
    published = hub.files(repository(unlearned))
    report = json.loads(published[RECORD])["report"]
    assert report.keys() & of_photos.keys() == set()
    assert (report["found_by"], report["destroyed"], report["threshold"]) == ("photo", 2, 0.625)
    assert "The people were recognised by their photos." in published["README.md"].decode()


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


def test_the_card_states_what_an_owner_of_both_models_can_infer(tmp_path: Path) -> None:
    from oneshui_hf.card import model_card

    original = make_run(tmp_path / "original", 0)
    unlearned = make_run(tmp_path / "unlearned", 1, original, KEYS)
    config = json.loads((unlearned.path / "config.json").read_text())
    score = {"owner": {"candidates": 51, "rank": 1.25, "intervals": {"rank": [1.0, 1.75]}}, "people": {"test": {"auc": 0.875}}}
    measured = {"outputs": {"loss_rise": score}, "weights": None, "oracle": {"outputs": {"loss_rise": {"owner": {"rank": 3.0}}}}}
    card = model_card(unlearned.record, config, {"difference": measured})
    assert "rank of a forgotten person among 51 candidates" in card
    assert "| loss rise | 1.2 [1.0, 1.8] | 3.0 | 0.88 |" in card
    assert "26.0 is chance" in card
    assert "It was not measured for this model." in model_card(unlearned.record, config, {})
    assert "An exact retraining" not in model_card(original.record, config, {})
