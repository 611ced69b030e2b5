"""The options of the commands for a repository on the Hub. This module imports nothing heavy, so that `--help` is instant."""

from __future__ import annotations

from dataclasses import dataclass

from ..options import option
from .publishing.options import HUB


@dataclass(frozen=True)
class RepositoryOptions:
    """A repository."""

    repo_id: str = option(help="Repository of a model on the Hub, as USER/NAME.", panel=HUB)


@dataclass(frozen=True)
class HistoryOptions:
    """A repository with revisions that contain weights."""

    repo_id: str = option(help="Repository of a model on the Hub, as USER/NAME, or of a Space, as spaces/USER/NAME.", panel=HUB)


@dataclass(frozen=True)
class SquashOptions(HistoryOptions):
    """The repository whose earlier revisions end, and the confirmation."""

    yes: bool = option(False, "Do not ask. Requires --confirm.", panel=HUB)
    confirm: str | None = option(None, "Name of the repository again, with --yes.", panel=HUB)
    dry_run: bool = option(False, "Print what would be removed, and change nothing.", panel=HUB)
