"""Ends the earlier revisions of a repository on the Hub: one commit per branch, without the large files that no revision refers to.

    oneshui hub squash USER/NAME
    oneshui hub squash spaces/USER/NAME

The order is: squash every branch, read the branches again, delete the large files that were there before and that nothing refers to now. A
command that was interrupted is repeated: it continues with what is left.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ...errors import OneshuiError, UsageError
from ...hub import hub_errors, logged_in_client, repository_kind
from ...reporting import SILENT, Reporter
from ...runs import versions
from ..hub_options import SquashOptions
from .history import MAX_COMMITS, Reference, list_references, read_revisions

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import LFSFileInfo

MAX_FILES = 100_000  # of a revision, and large files of a repository
UNTOUCHED = (
    "Copies that others downloaded, forks, duplicates and caches are untouched, and the Hub may serve small files of an earlier commit to "
    "whoever knows its hash, until it removes them."
)


def check_squash(options: SquashOptions) -> None:
    """Check that the user has confirmed it.

    Raises:
        UsageError: `yes` or the name of the repository is missing, or it is another one.
    """
    if options.dry_run:
        return
    if options.confirm is not None and options.confirm != options.repo_id:
        raise UsageError(f"--confirm names {options.confirm}, and the repository is {options.repo_id}; nothing was changed.")
    if not options.yes or options.confirm is None:
        raise UsageError(
            f"This ends all earlier revisions of {options.repo_id} for good: confirm with --yes --confirm {options.repo_id}, "
            "or print what it would remove with --dry-run."
        )


def squash_history(options: SquashOptions, reporter: Reporter = SILENT) -> dict[str, Any]:
    """End the earlier revisions of a repository.

    Returns:
        `repository`; `dry_run`; `branches`, each with `branch` and `commits`, their number before (at most 1,000 are counted); `deleted`,
        the large files, each with `file`, `sha256`, `bytes` and `pushed` (ISO 8601); `bytes`, their size; `kept_by`, tags and pull
        requests, whose revisions and files stay; `untouched`, what this does not reach.

    Raises:
        UsageError: It is not confirmed, nobody is logged in, or the name is not that of a repository.
        OneshuiError: The repository is missing; its tags have too many commits, or a revision too many files; its large files cannot be
            matched with those of its branches; or the Hub cannot be reached or denies access.
    """
    check_squash(options)
    name = options.repo_id
    with hub_errors(name, None):
        api = logged_in_client()
        references = list_references(api, name)
        branches, others = _branches(references), [one for one in references if one.kind != "branch"]
        commits = {branch.name: len(read_revisions(api, name, [branch])[0]) for branch in branches}
        kept = _large_files(api, name, _kept_commits(api, name, others))
        kind, on_hub = repository_kind(name)
        stored = _bounded(api.list_lfs_files(on_hub, repo_type=kind), f"{name} has more than {MAX_FILES:,} large files")
        removed = _unreferenced(name, stored, kept, _large_files(api, name, (branch.commit for branch in branches)))
        if not options.dry_run:
            for branch in branches:
                if commits[branch.name] > 1:
                    reporter.info(f"Squashing {branch.name}.")
                    message = f"Squash with oneshui {versions()['oneshui-hf']}"
                    api.super_squash_history(on_hub, repo_type=kind, branch=branch.name, commit_message=message)
            # Read again: another push may have added a revision meanwhile.
            heads = [branch.commit for branch in _branches(list_references(api, name))]
            removed = _unreferenced(name, stored, kept, _large_files(api, name, heads))
            reporter.info(f"Deleting {len(removed)} large files.")
            # Nothing refers to them, so there is no history to rewrite, and the hashes of tagged commits stay as they are.
            api.permanently_delete_lfs_files(on_hub, removed, rewrite_history=False, repo_type=kind)
    return {
        "repository": name,
        "dry_run": options.dry_run,
        "branches": [{"branch": branch, "commits": count} for branch, count in commits.items()],
        "deleted": [
            {"file": file.filename, "sha256": file.file_oid, "bytes": file.size, "pushed": file.pushed_at.isoformat(timespec="seconds")}
            for file in removed
        ],
        "bytes": sum(file.size for file in removed),
        "kept_by": [one.name for one in others],
        "untouched": UNTOUCHED,
    }


def _branches(references: Iterable[Reference]) -> list[Reference]:
    return [one for one in references if one.kind == "branch"]


def _kept_commits(api: HfApi, name: str, references: list[Reference]) -> list[str]:
    """Return the commits of tags and pull requests, which no squash ends.

    Raises:
        OneshuiError: There are too many.
    """
    revisions, complete = read_revisions(api, name, references)
    if not complete:
        raise OneshuiError(
            f"{name} has more than {MAX_COMMITS:,} commits in tags and pull requests ({references[0].name}, ...), so nothing was changed; "
            "delete the tags first."
        )
    return [revision.commit for revision in revisions]


def _large_files(api: HfApi, name: str, commits: Iterable[str]) -> set[str]:
    """Return the SHA-256 of all large files that commits refer to."""
    found = set[str]()
    kind, on_hub = repository_kind(name)
    for commit in commits:
        entries = api.list_repo_tree(on_hub, recursive=True, revision=commit, repo_type=kind)
        large = (getattr(entry, "lfs", None) for entry in _bounded(entries, f"{name} has a revision of more than {MAX_FILES:,} files"))
        found |= {one.sha256 for one in large if one is not None}
    return found


def _bounded(entries: Iterable[Any], problem: str) -> list[Any]:
    """Return all entries.

    Raises:
        OneshuiError: There are more than `MAX_FILES`.
    """
    found = list(itertools.islice(entries, MAX_FILES + 1))
    if len(found) > MAX_FILES:
        raise OneshuiError(f"{problem}, so no large file was deleted.")
    return found


def _unreferenced(name: str, stored: list[LFSFileInfo], kept: set[str], heads: set[str]) -> list[LFSFileInfo]:
    """Return the stored large files that no revision refers to.

    Raises:
        OneshuiError: The Hub does not list a file that a branch refers to, so the two lists cannot be compared.
    """
    if missing := heads - {oid for file in stored for oid in (file.file_oid, file.oid)}:
        raise OneshuiError(
            f"The Hub does not list {len(missing)} of the large files that the branches of {name} refer to, so no file was deleted; "
            "run the same command again."
        )
    return [file for file in stored if not {file.file_oid, file.oid} & (kept | heads)]
