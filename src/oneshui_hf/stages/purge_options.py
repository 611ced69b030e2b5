"""The options of `oneshui purge`. This module imports nothing heavy, so that `--help` is instant."""

from __future__ import annotations

from dataclasses import dataclass

from ..options import option
from .cache_options import CacheListOptions


@dataclass(frozen=True, kw_only=True)
class PurgeOptions(CacheListOptions):
    """Whose data is removed, and from which runs."""

    identity: str = option(help="Identity of the person, as named in the training data.")
    run: tuple[str, ...] = option((), "Run to purge; can be repeated. All below runs/ by default.", path=True)
    dry_run: bool = option(False, "Print what would be removed, and change nothing.")
