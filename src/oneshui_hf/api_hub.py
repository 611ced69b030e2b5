"""The commands that remove earlier weights and a person's data, on the Hub and here, as Python functions; `api` exports them."""

from __future__ import annotations

from typing import Any

from .api_options import read_options, with_options
from .reporting import SILENT, Reporter, default_reporter
from .stages.hub_options import HistoryOptions, RepositoryOptions, SquashOptions
from .stages.purge_options import PurgeOptions

__all__ = ["list_derived_models", "list_revisions", "purge", "squash_history"]


@with_options(HistoryOptions)
def list_revisions(repo_id: str, *, reporter: Reporter = SILENT, **options: Any) -> dict[str, Any]:
    """Return the revisions of a repository on the Hub, and which weights each of them contains. No weights are downloaded."""
    del reporter
    resolved = read_options(HistoryOptions, {**options, "repo_id": repo_id}, "hub history")
    from .stages.publishing.history import list_revisions as stage

    return stage(resolved)


@with_options(SquashOptions)
def squash_history(repo_id: str, *, reporter: Reporter | None = None, **options: Any) -> dict[str, Any]:
    """End the earlier revisions of a repository on the Hub for good, and return what was removed; with `dry_run` what would be removed."""
    resolved = read_options(SquashOptions, {**options, "repo_id": repo_id}, "hub squash")
    from .stages.publishing.squash import squash_history as stage

    return stage(resolved, reporter or default_reporter())


@with_options(RepositoryOptions)
def list_derived_models(repo_id: str, *, reporter: Reporter = SILENT, **options: Any) -> dict[str, Any]:
    """Return the models on the Hub that name a repository as their base model."""
    del reporter
    resolved = read_options(RepositoryOptions, {**options, "repo_id": repo_id}, "hub derived")
    from .stages.publishing.history import list_derived_models as stage

    return stage(resolved)


@with_options(PurgeOptions)
def purge(*, reporter: Reporter | None = None, **options: Any) -> dict[str, Any]:
    """Remove a person from what runs and caches contain in addition to weights, and return what was removed and what stays."""
    resolved = read_options(PurgeOptions, options, "purge")
    from .stages.purge import purge as stage

    return stage(resolved, reporter or default_reporter())
