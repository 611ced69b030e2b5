"""The revisions of a repository and the models that name it, through the real client and a Hub on the loopback interface."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from oneshui_hf import api_hub
from oneshui_hf.cli import show_hub
from oneshui_hf.errors import UsageError
from oneshui_hf.reporting import Reporter
from oneshui_hf.runs import RECORD, combine_hashes, hash_weights
from oneshui_hf.stages.hub_options import SquashOptions
from oneshui_hf.stages.publishing.history import MAX_COMMITS, MAX_ENTRIES, MAX_RECORD, _relation
from oneshui_hf.stages.publishing.squash import check_squash
from support.commands import Oneshui, sentence
from support.hub_client import Client
from support.hub_server import PAGE, Hub

WEIGHTS = "model.safetensors"
OLD, NEW = b"earlier weights", b"weights of today"
NUMBERS = itertools.count()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def record(weights: bytes, kind: str = "original", **changes: Any) -> bytes:
    content = {"format": 1, "kind": kind, "seed": 0, "options": {}, "dataset": {}, "weights": sha256(weights)}
    return json.dumps(content | changes).encode()


@pytest.fixture
def repo_id(hub: Hub) -> str:
    """A public repository with weights, a new card, and an unlearned model that replaced them."""
    name = f"owner/faces{next(NUMBERS)}"
    hub.add(name, {WEIGHTS: OLD, RECORD: record(OLD)}, private=False)
    hub.add(name, {"README.md": b"# Faces"})
    hub.add(name, {WEIGHTS: NEW, RECORD: record(NEW, "unlearned")})
    return name


def revisions(client: Client, repo_id: str, token: str | None = "hf_owner", **bounds: int) -> dict[str, Any]:
    answer = client("list_revisions", token, repo_id=repo_id, **bounds)
    assert "error" not in answer, answer
    found: dict[str, Any] = answer["result"]
    return found


def column(found: dict[str, Any], name: str) -> list[Any]:
    return [row[name] for row in found["revisions"]]


def squash(client: Client, repo_id: str, **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"yes": True, "confirm": repo_id} | options
    return client("squash_history", repo_id=repo_id, **given)


def paths(hub: Hub, start: int) -> list[str]:
    return [request.path for request in hub.requests[start:]]


def test_history_shows_which_revision_contains_which_weights(client: Client, hub: Hub, repo_id: str) -> None:
    start = len(hub.requests)
    found = revisions(client, repo_id, None)
    assert column(found, "weights") == [sha256(NEW), sha256(OLD), sha256(OLD)]
    assert column(found, "recorded") == column(found, "weights")
    assert column(found, "kind") == ["unlearned", "original", "original"]
    assert column(found, "earlier") == [False, True, True]
    assert column(found, "is_head") == [True, False, False]
    assert column(found, "references") == [["main"]] * 3
    assert column(found, "revision") == hub.repos[repo_id].history(hub.repos[repo_id].branches["main"])
    assert all(date.startswith("2026-01-01T") for date in column(found, "date"))
    assert (found["head"], found["earlier"], found["complete"]) == (sha256(NEW), 2, True)
    asked = paths(hub, start)
    assert not any(path.endswith(WEIGHTS) for path in asked)  # no weights are downloaded
    assert sum("resolve" in path for path in asked) == 2 * 2  # HEAD and GET, once for each version of the record


def test_branches_tags_and_pull_requests_are_read_once(client: Client, hub: Hub, repo_id: str) -> None:
    repo = hub.repos[repo_id]
    first = repo.history(repo.branches["main"])[-1]
    repo.branches["trial"], repo.tags["v1"] = repo.branches["main"], first
    other = repo.commit("trial", {WEIGHTS: b"a third model", RECORD: record(b"a third model")})
    repo.pulls["refs/pr/1"] = first
    found = revisions(client, repo_id)
    assert len(found["revisions"]) == 4
    assert column(found, "references")[2] == ["main", "trial", "v1", "refs/pr/1"]
    assert column(found, "revision")[-1] == other
    assert column(found, "earlier") == [False, True, True, True]  # other weights than main, in a branch that is newer


def test_weights_of_several_files_have_the_hash_of_a_run(client: Client, hub: Hub, tmp_path: Path) -> None:
    files = {f"model-0000{number}-of-00002.safetensors": bytes([number]) * 9 for number in (1, 2)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    repo_id = f"owner/shards{next(NUMBERS)}"
    hub.add(repo_id, files)
    assert revisions(client, repo_id)["head"] == hash_weights(tmp_path) == combine_hashes([sha256(data) for data in files.values()])


def test_what_a_repository_contains_is_not_believed(client: Client, hub: Hub) -> None:
    repo_id = f"owner/crafted{next(NUMBERS)}"
    hostile = [
        record(OLD),  # of other weights than the file has
        b"{",
        b"[" * 100_000,
        record(NEW, "\x1b[2J"),
        record(NEW, options={"x": {"y": 1}}),
        record(NEW)[:-1] + b" " * MAX_RECORD + b"}",
    ]
    hub.add(repo_id, {"README.md": b""})
    hub.add(repo_id, {WEIGHTS: NEW})
    for content in hostile:
        hub.add(repo_id, {RECORD: content})
    hub.add(repo_id, {f"{number}.txt": b"" for number in range(MAX_ENTRIES)})
    start = len(hub.requests)
    found = revisions(client, repo_id)
    damaged = f"{RECORD} is damaged"
    notes = [f"more than {MAX_ENTRIES:,} files", *[damaged] * 5, f"{RECORD} names other weights", f"no {RECORD}", None]
    assert column(found, "note") == notes
    assert column(found, "weights") == ["unknown", *[sha256(NEW)] * 7, None]
    assert column(found, "earlier") == [True, *[True] * 7, False]  # those of main are not known
    assert sum("resolve" in path for path in paths(hub, start)) == 2 * 5  # the large record was not fetched


def test_the_number_of_commits_is_bounded(client: Client, hub: Hub, repo_id: str) -> None:
    repo = hub.repos[repo_id]
    assert MAX_COMMITS == 1000
    for number in range(PAGE + 10):
        repo.commit("main", {"count": str(number).encode()})
    found = revisions(client, repo_id, max_commits=PAGE + 13)
    assert (found["complete"], len(found["revisions"])) == (True, PAGE + 13)
    start = len(hub.requests)
    found = revisions(client, repo_id, max_commits=PAGE - 1)
    assert (found["complete"], len(found["revisions"])) == (False, PAGE - 1)
    assert sum("/commits/" in path for path in paths(hub, start)) == 1  # the second page is not fetched
    repo.tags["v1"] = repo.branches["main"]
    assert "more than" in squash(client, repo_id, max_commits=PAGE)["error"]
    del repo.tags["v1"]
    assert squash(client, repo_id, max_commits=PAGE)["result"]["branches"] == [{"branch": "main", "commits": PAGE}]
    assert len(revisions(client, repo_id)["revisions"]) == 1


def test_squash_ends_earlier_weights(client: Client, hub: Hub, repo_id: str) -> None:
    repo = hub.repos[repo_id]
    repo.branches["same"] = repo.branches["main"]
    earlier = repo.history(repo.branches["main"])[1]
    before = dict(hub.files(repo_id))
    plan = squash(client, repo_id, yes=False, confirm=None, dry_run=True)["result"]
    assert repo.deleted == set()
    assert len(revisions(client, repo_id)["revisions"]) == 3
    done = squash(client, repo_id)["result"]
    assert plan == done | {"dry_run": True}
    assert done["branches"] == [{"branch": "main", "commits": 3}, {"branch": "same", "commits": 3}]
    assert [(row["file"], row["sha256"], row["bytes"]) for row in done["deleted"]] == [(WEIGHTS, sha256(OLD), len(OLD))]
    assert "forks" in done["untouched"]
    found = revisions(client, repo_id)
    assert column(found, "weights") == [sha256(NEW), sha256(NEW)]
    assert found["earlier"] == 0
    assert hub.files(repo_id) == before
    assert repo.deleted == {sha256(OLD)}
    assert client("pull", repo_id=repo_id, revision=earlier, output_dir=str(Path("gone"))).get("error")  # by its hash
    again = squash(client, repo_id)["result"]
    assert (again["deleted"], [row["commits"] for row in again["branches"]]) == ([], [1, 1])


def test_squash_keeps_what_tags_and_pull_requests_refer_to(client: Client, hub: Hub, repo_id: str) -> None:
    repo = hub.repos[repo_id]
    repo.tags["v1"] = repo.branches["main"]
    repo.commit("main", hub.files(repo_id) | {WEIGHTS: b"3"})
    repo.commit("main", hub.files(repo_id) | {WEIGHTS: b"4", "data/nested.parquet": b"table"})
    done = squash(client, repo_id)["result"]
    assert [row["sha256"] for row in done["deleted"]] == [sha256(b"3")]
    assert done["kept_by"] == ["v1"]
    assert revisions(client, repo_id)["earlier"] == 3
    del repo.tags["v1"]
    done = squash(client, repo_id)["result"]
    assert {row["sha256"] for row in done["deleted"]} == {sha256(OLD), sha256(NEW)}  # and not the table


def test_squash_deletes_nothing_where_the_lists_do_not_fit(client: Client, hub: Hub, repo_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(hub.repos[repo_id]), "large_files", lambda repo: {"0" * 64: (WEIGHTS, 3)})
    assert "does not list 1 of the large files" in squash(client, repo_id)["error"]
    assert hub.repos[repo_id].deleted == set()


def test_squash_is_for_the_owner_with_a_confirmation(client: Client, hub: Hub, repo_id: str) -> None:
    start = len(hub.requests)
    for options in ({"yes": False}, {"confirm": None}, {"confirm": "owner/other"}):
        assert repo_id in squash(client, repo_id, **options)["error"]
    assert len(hub.requests) == start
    assert "denies you this access" in squash(client, repo_id, token="hf_other")["error"]
    assert "not logged in" in squash(client, repo_id, token=None)["error"]
    assert "does not exist or you cannot access it" in squash(client, "owner/nothing", confirm="owner/nothing")["error"]
    assert len(revisions(client, repo_id)["revisions"]) == 3


def test_check_squash_accepts_a_confirmed_name() -> None:
    check_squash(SquashOptions("a/b", yes=True, confirm="a/b"))
    check_squash(SquashOptions("a/b", dry_run=True))
    with pytest.raises(UsageError, match="--confirm names a/c"):
        check_squash(SquashOptions("a/b", yes=True, confirm="a/c"))


def test_errors_are_one_sentence(client: Client) -> None:
    for what in ("list_revisions", "list_derived_models"):
        assert "is not the name of a repository" in client(what, repo_id="a/b/c")["error"]
    assert "does not exist" in client("list_revisions", repo_id="owner/nothing")["error"]
    assert "HF_HUB_OFFLINE" in client("list_revisions", repo_id="owner/nothing", offline=True)["error"]


def test_derived_models_are_listed_with_their_relation(client: Client, hub: Hub, repo_id: str) -> None:
    def card(relation: str = "") -> dict[str, bytes]:
        return {"README.md": f"---\nbase_model: {repo_id}\n{relation}---\n".encode()}

    names = [f"{repo_id}-{number}" for number in range(3)]
    hub.add(names[1], card("base_model_relation: finetune\n"), private=False)
    hub.add(names[0], card(), private=False)
    hub.add(names[2], card())
    rows = [{"model": name, "relation": None, "private": False} for name in names]
    rows[1]["relation"], rows[2]["private"] = "finetune", True
    assert client("list_derived_models", repo_id=repo_id)["result"] == {"repository": repo_id, "models": rows, "complete": True}
    assert client("list_derived_models", None, repo_id=repo_id)["result"]["models"] == rows[:2]
    assert client("list_derived_models", repo_id="owner/nothing")["result"]["models"] == []


def test_relation_is_that_to_the_repository() -> None:
    tags = ["x", "base_model:a/c", "base_model:merge:a/c", "base_model:a/b", "base_model:quantized:a/b"]
    assert _relation(tags, "a/b") == "quantized"
    assert _relation(tags[:1], "a/b") is None


# Printing, and the questions on a terminal

PLAN: dict[str, Any] = {
    "repository": "a/b",
    "dry_run": True,
    "branches": [{"branch": "main", "commits": 3}],
    "deleted": [{"file": "x\x1b[2J.safetensors", "sha256": "0" * 64, "bytes": 2_000_000, "pushed": "2026-01-01"}],
    "bytes": 2_000_000,
    "kept_by": ["v1"],
    "untouched": "Copies are untouched.",
}


def test_results_are_printed_safely(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"revision": "0" * 40, "date": "2026-01-01", "references": ["ma\x1bin"], "kind": None, "weights": "f" * 64}
    rows = [row | {"is_head": True, "earlier": False, "note": None}, row | {"is_head": False, "earlier": True, "note": "no\nrecord"}]
    show_hub.history({"repository": "a/b", "revisions": rows, "earlier": 1, "complete": False})
    show_hub.squashed(PLAN)
    show_hub.squashed(PLAN | {"dry_run": False})
    show_hub.derived({"repository": "a/b", "models": [{"model": "c/\x1bd", "relation": "finetune", "private": True}], "complete": True})
    show_hub.derived({"repository": "a/b", "models": [], "complete": False})
    out = capsys.readouterr().out
    assert "\x1b" not in out
    for text in (
        "OTHER WEIGHTS",
        "as in main",
        "read: 1 of 2.",
        "there are more",
        "main: 3, would be 1",
        "main: 3, now 1",
    ):
        assert text in out
    for text in (
        "that would be deleted: 1 (2.0 MB)",
        "Large files deleted: 1",
        "Copies are untouched.",
        "v1",
        "c/\\x1bd",
        "Models that name a/b as their base model: 0.",
    ):
        assert text in out


class Answering(Reporter):
    """Gives every yes-or-no question the same answer."""

    def __init__(self, answer: bool) -> None:
        self.answer, self.questions = answer, list[str]()

    def confirm(self, question: str) -> bool:
        self.questions.append(question)
        return self.answer


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that calls the command on a terminal, and returns the calls of the stage and the error."""

    def call(reporter: Answering, typed: str, **options: Any) -> tuple[list[dict[str, Any]], str | None]:
        calls: list[dict[str, Any]] = []

        def stage(*, reporter: Any, **given: Any) -> dict[str, Any]:
            calls.append(given)
            return PLAN

        monkeypatch.setattr(api_hub, "squash_history", stage)
        monkeypatch.setattr("sys.stdin", Terminal(f"{typed}\n"))
        try:
            show_hub.squash_after_questions(reporter=reporter, repo_id="a/b", **options)
        except UsageError as error:
            return calls, str(error)
        return calls, None

    return call


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_two_answers_confirm(asked: Any, capsys: pytest.CaptureFixture[str]) -> None:
    reporter, plan = Answering(True), {"repo_id": "a/b", "dry_run": True}
    confirmed = {"repo_id": "a/b", "yes": True, "confirm": "a/b"}
    assert asked(reporter, "a/b") == ([plan, confirmed], None)
    assert reporter.questions == ["The 3 commits of a/b become 1, and large files are deleted for good (1, 2.0 MB). Continue?"]
    out, err = capsys.readouterr()
    assert (out, err) == ("", "Type the name of the repository to confirm: ")
    for answer, typed in ((False, "a/b"), (True, ""), (True, "y"), (True, "a/c")):
        assert asked(Answering(answer), typed) == ([plan], "Not confirmed; nothing was changed.")
    for options in ({"yes": True, "confirm": "a/b"}, {"dry_run": True}, {"confirm": "a/b"}):
        assert asked(Answering(False), "", **options) == ([{"repo_id": "a/b", **options}], None)


def test_without_a_terminal_it_needs_both_options(oneshui: Oneshui) -> None:
    code, out, err = oneshui("hub", "squash", "a/b")
    assert (code, out) == (2, "")
    assert "confirm with --yes --confirm a/b" in sentence(err)
