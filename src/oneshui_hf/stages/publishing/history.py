"""The revisions of a repository on the Hub: which of them contain which weights, and which models name the repository.

    oneshui hub history USER/NAME
    oneshui hub history spaces/USER/NAME
    oneshui hub derived USER/NAME

No weights are downloaded: the Hub lists the SHA-256 of each large file, and the record of a run names that of its weights. What a
repository contains was written by others, so the numbers of commits and files that are read, and the size of records, have bounds.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import OneshuiError
from ...hub import hub_errors, repository_kind
from ...runs import RECORD, Record, Run, combine_hashes
from ..hub_options import HistoryOptions, RepositoryOptions
from .space import FOLDER

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

MAIN = "main"  # the branch that a pull reads by default
MAX_COMMITS = 1000  # of a repository that are read
MAX_ENTRIES = 1000  # in the top folder of a revision
MAX_RECORD = 2**22  # bytes
MAX_MODELS = 1000
UNKNOWN = "unknown"  # instead of the hash of weights
HEX = frozenset("0123456789abcdef")

Token = bool | None  # of a call of the client: False reads as anyone can, None as the user who is logged in


@dataclass(frozen=True)
class Reference:
    """A name of a commit.

    Attributes:
        name: The name; that of a branch or tag is short.
        kind: "branch", "tag", or "other" (pull requests and converted files).
        commit: The commit.
    """

    name: str
    kind: str
    commit: str


@dataclass
class Revision:
    """A commit of a repository.

    Attributes:
        commit: The commit.
        date: Its date.
        references: Names of the branches, tags and pull requests that contain it.
    """

    commit: str
    date: datetime
    references: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Contents:
    """What a revision contains.

    Attributes:
        weights: SHA-256 of the weights, as in a record; `UNKNOWN` if it cannot be found out; None without weights.
        recorded: SHA-256 that the record names; None without a valid record.
        kind: The kind of run; None without a valid record.
        note: What is wrong with it.
    """

    weights: str | None
    recorded: str | None = None
    kind: str | None = None
    note: str | None = None


def list_revisions(options: HistoryOptions) -> dict[str, Any]:
    """List the revisions of a repository, and which weights each contains.

    Returns:
        `repository`; `head`, the hash of the weights in the main branch; `revisions`, those of the main branch first, each with `revision`,
        `date` (ISO 8601), `references`, `kind`, `weights`, `recorded`, `is_head` (whether the weights are those of `head`), `earlier`
        (whether they are others), and `note`; `earlier`, the number of revisions with other weights than the head; `complete`, whether all
        commits were read.

    Raises:
        UsageError: The name is not that of a repository.
        OneshuiError: The repository is missing, or the Hub cannot be reached or denies access.
    """
    with hub_errors(options.repo_id, None):
        from huggingface_hub import HfApi

        api = HfApi(library_name="oneshui")
        revisions, complete = read_revisions(api, options.repo_id, list_references(api, options.repo_id))
        reader = ContentsReader(api, options.repo_id)
        found = [(revision, reader.read(revision.commit)) for revision in revisions]
    head = next((contents.weights for revision, contents in found if MAIN in revision.references), None)
    rows = [_row(revision, contents, head) for revision, contents in found]
    return {
        "repository": options.repo_id,
        "head": head,
        "revisions": rows,
        "earlier": sum(row["earlier"] for row in rows),
        "complete": complete,
    }


def _row(revision: Revision, contents: Contents, head: str | None) -> dict[str, Any]:
    is_head = contents.weights not in (None, UNKNOWN) and contents.weights == head
    return {
        "revision": revision.commit,
        "date": revision.date.isoformat(timespec="seconds"),
        "references": revision.references,
        "kind": contents.kind,
        "weights": contents.weights,
        "recorded": contents.recorded,
        "is_head": is_head,
        "earlier": contents.weights is not None and not is_head,
        "note": contents.note,
    }


def holds_weights(api: HfApi, repo_id: str, weights: str, token: Token = None) -> bool:
    """Return whether a revision of a repository contains weights, or may: those of a revision can be unknown, and there is a bound.

    Args:
        api: The client.
        repo_id: The repository; the name of a Space begins with "spaces/".
        weights: SHA-256 of the weights.
        token: False to read as anyone can.
    """
    references = list_references(api, repo_id, token)
    reader = ContentsReader(api, repo_id, token)
    seen = set[str]()
    for number, (_, commit, _) in enumerate(_commits(api, repo_id, references, token)):
        if number == MAX_COMMITS:
            return True
        if commit not in seen and reader.read(commit).weights in (weights, UNKNOWN):
            return True
        seen.add(commit)
    return False


def list_references(api: HfApi, repo_id: str, token: Token = None) -> list[Reference]:
    """Return the branches, the main branch first, then tags, pull requests and converted files."""
    kind, name = repository_kind(repo_id)
    refs = api.list_repo_refs(name, repo_type=kind, include_pull_requests=True, token=token)
    branches = sorted((Reference(ref.name, "branch", ref.target_commit) for ref in refs.branches), key=lambda ref: ref.name != MAIN)
    tags = [Reference(ref.name, "tag", ref.target_commit) for ref in refs.tags]
    return branches + tags + [Reference(ref.ref, "other", ref.target_commit) for ref in (*(refs.pull_requests or ()), *refs.converts)]


def read_revisions(api: HfApi, repo_id: str, references: Sequence[Reference], token: Token = None) -> tuple[list[Revision], bool]:
    """Return the commits of references, the newest of each first, and whether these are all; at most `MAX_COMMITS` are read."""
    found: dict[str, Revision] = {}
    for number, (name, commit, date) in enumerate(_commits(api, repo_id, references, token)):
        if number == MAX_COMMITS:
            return list(found.values()), False
        found.setdefault(commit, Revision(commit, date)).references.append(name)
    return list(found.values()), True


def _commits(api: HfApi, repo_id: str, references: Sequence[Reference], token: Token) -> Iterator[tuple[str, str, datetime]]:
    """Yield the name of a reference, a commit and its date, for every commit of every reference."""
    # Not `HfApi.list_repo_commits`, which reads all pages before it returns.
    from huggingface_hub.utils import build_hf_headers, paginate, parse_datetime

    headers = build_hf_headers(token=token, library_name="oneshui")
    kind, name = repository_kind(repo_id)
    for reference in references:
        for item in paginate(f"{api.endpoint}/api/{kind}s/{name}/commits/{reference.commit}", params={}, headers=headers):
            yield reference.name, item["id"], parse_datetime(item["date"])


class ContentsReader:
    """Reads what revisions of a repository contain, and each version of the record once."""

    def __init__(self, api: HfApi, repo_id: str, token: Token = None) -> None:
        self._api, self._token = api, token
        self._kind, self._name = repository_kind(repo_id)
        self._folder = f"{FOLDER}/" if self._kind == "space" else ""  # of the model's files
        self._records: dict[str, Record | None] = {}

    def read(self, commit: str) -> Contents:
        """Return what a revision contains."""
        from huggingface_hub.hf_api import RepoFile

        entries = self._entries(commit)
        if len(entries) > MAX_ENTRIES:
            return Contents(UNKNOWN, note=f"more than {MAX_ENTRIES:,} files")
        files = {entry.path.removeprefix(self._folder): entry for entry in entries if isinstance(entry, RepoFile)}
        weights = _weights(files)
        if RECORD not in files:
            return Contents(weights, note=f"no {RECORD}" if weights else None)
        record = self._record(files[RECORD], commit)
        if record is None:
            return Contents(weights, note=f"{RECORD} is damaged")
        if weights == UNKNOWN and record.weights is not None:
            weights = record.weights
        note = f"{RECORD} names other weights" if weights not in (None, record.weights) else None
        return Contents(weights, record.weights, record.kind, note)

    def _entries(self, commit: str) -> list[Any]:
        """Return what the folder of the model contains in a revision, up to one entry more than the bound; nothing without the folder."""
        from huggingface_hub.errors import EntryNotFoundError

        listed = self._api.list_repo_tree(
            self._name, self._folder.rstrip("/") or None, repo_type=self._kind, revision=commit, token=self._token
        )
        try:
            return list(itertools.islice(listed, MAX_ENTRIES + 1))
        except EntryNotFoundError:
            return []

    def _record(self, file: RepoFile, commit: str) -> Record | None:
        """Return the record of a revision; None if it is not valid."""
        if file.blob_id not in self._records:
            self._records[file.blob_id] = self._download(commit) if file.size <= MAX_RECORD else None
        return self._records[file.blob_id]

    def _download(self, commit: str) -> Record | None:
        with tempfile.TemporaryDirectory(prefix="oneshui-record-") as folder:
            file = self._folder + RECORD
            self._api.hf_hub_download(self._name, file, repo_type=self._kind, revision=commit, local_dir=folder, token=self._token)
            try:
                return Run.open(Path(folder, self._folder)).record
            except OneshuiError:
                return None


def _weights(files: dict[str, RepoFile]) -> str | None:
    """Return the SHA-256 of weights as `runs.hash_weights` does; None without weights, `UNKNOWN` if one of their files is no large file."""
    stored = [files[name].lfs for name in sorted(files) if name.endswith(".safetensors")]
    hashes = [large.sha256 for large in stored if large is not None and len(large.sha256) == 64 and HEX.issuperset(large.sha256)]
    return UNKNOWN if len(hashes) < len(stored) else combine_hashes(hashes) if hashes else None


def list_derived_models(options: RepositoryOptions) -> dict[str, Any]:
    """List the models whose card names a repository as their base model. Only what the user may see is listed.

    Returns:
        `repository`; `models`, by name, each with `model`, `relation` (None if the card names none) and `private`; `complete`, whether
        these are all.

    Raises:
        UsageError: The name is not that of a repository.
        OneshuiError: The Hub cannot be reached.
    """
    with hub_errors(options.repo_id, None):
        from huggingface_hub import HfApi
        from huggingface_hub.utils import validate_repo_id

        validate_repo_id(options.repo_id)
        tag = f"base_model:{options.repo_id}"
        listed = list(HfApi(library_name="oneshui").list_models(filter=tag, limit=MAX_MODELS + 1))
    models = [
        {"model": model.id, "relation": _relation(model.tags or (), options.repo_id), "private": bool(model.private)}
        for model in listed[:MAX_MODELS]
    ]
    return {
        "repository": options.repo_id,
        "models": sorted(models, key=lambda row: str(row["model"])),
        "complete": len(listed) <= MAX_MODELS,
    }


def _relation(tags: Sequence[str], repo_id: str) -> str | None:
    parts = (tag.split(":", 2) for tag in tags)
    return next((part[1] for part in parts if len(part) == 3 and part[0] == "base_model" and part[2] == repo_id), None)
