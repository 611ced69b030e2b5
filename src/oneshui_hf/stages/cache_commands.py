"""Looking at what is kept in the cache, and removing it.

oneshui cache list
oneshui cache clear --kind oracle --older-than 30
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

from ..cache import Cache, cache_root
from .command_options import CacheListOptions, ClearOptions


def list_cache(options: CacheListOptions) -> dict[str, Any]:
    """Return what is kept.

    Returns:
        `cache`, the folder; `entries`, the last used first: key, kind, about, bytes, last_used (ISO 8601, UTC), locked.

    Raises:
        UsageError: The folder is a file, or holds other things than a cache.
    """
    root = cache_root(options.cache_dir)
    rows = [dataclasses.asdict(entry) | {"last_used": _time(entry.last_used)} for entry in Cache(root).entries()]
    return {"cache": str(root), "entries": rows}


def clear_cache(options: ClearOptions) -> dict[str, Any]:
    """Remove what is kept, except what a process works with.

    Returns:
        `cache`, the folder; `entries` and `bytes`, how much was removed, or would be; `in_use`, how many stay; `dry_run`.

    Raises:
        UsageError: The folder is a file, or holds other things than a cache.
    """
    root = cache_root(options.cache_dir)
    kinds = (options.kind,) if options.kind else None
    cleared = Cache(root).clear(kinds, options.older_than, dry_run=options.dry_run)
    return {"cache": str(root), "dry_run": options.dry_run, **dataclasses.asdict(cleared)}


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
