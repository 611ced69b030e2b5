"""The commands that list and clear the cache.

oneshui cache list
oneshui cache clear --kind oracle --older-than 30
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

from ..cache import Cache, cache_root
from ..methods.identity_store import discard_with_secrets
from ..vault import vault_root
from .cache_options import CacheListOptions, ClearOptions


def list_cache(options: CacheListOptions) -> dict[str, Any]:
    """Return the entries of the cache.

    Returns:
        `cache`, the folder; `entries`, the most recently used first: key, kind, about, bytes, last_used (ISO 8601, UTC), locked.

    Raises:
        UsageError: The folder is a file, or contains other files than a cache.
    """
    root = cache_root(options.cache_dir)
    entries = [dataclasses.asdict(entry) | {"last_used": _iso_time(entry.last_used)} for entry in Cache(root).entries()]
    return {"cache": str(root), "entries": entries}


def clear_cache(options: ClearOptions) -> dict[str, Any]:
    """Remove entries of the cache, except those that a process is using.

    Returns:
        `cache`, the folder; `entries` and `bytes`, the number and size of removed entries, or of those that would be removed; `in_use`, the
        number of entries kept because they are in use; `dry_run`.

    Raises:
        UsageError: The folder is a file, or contains other files than a cache.
    """
    root = cache_root(options.cache_dir)
    kinds = (options.kind,) if options.kind else None
    cleared = Cache(root, discard_with_secrets(vault_root())).clear(kinds, options.older_than, dry_run=options.dry_run)
    return {"cache": str(root), "dry_run": options.dry_run, **dataclasses.asdict(cleared)}


def _iso_time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
