"""The options of the commands for caches and for the machine. This module imports nothing heavy, so that `--help` is instant."""

from __future__ import annotations

from dataclasses import dataclass

from ..cache import KINDS
from ..options import option


@dataclass(frozen=True)
class CacheListOptions:
    """Which cache."""

    cache_dir: str | None = option(None, "Folder of the cache. $ONESHUI_CACHE or ~/.cache/oneshui by default.", path=True)


@dataclass(frozen=True)
class ClearOptions(CacheListOptions):
    """What is removed from a cache."""

    kind: str | None = option(None, "Remove only entries of this kind.", choices=KINDS)
    older_than: float | None = option(None, "Remove only entries that were last used at least this many days ago.", minimum=0)
    dry_run: bool = option(False, "Print what would be removed, and remove nothing.")


@dataclass(frozen=True)
class EnvironmentOptions(CacheListOptions):
    """Which cache is measured."""
