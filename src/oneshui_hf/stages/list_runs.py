"""The runs below a folder, one line each.

oneshui runs
oneshui runs ROOT --json
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from ..errors import OneshuiError, UsageError
from ..metrics.schema import read_metrics
from ..runs import RECORD, RUNS, Run
from .command_options import RunsOptions


def list_runs(options: RunsOptions) -> list[dict[str, Any]]:
    """Return a row per run below a folder, the newest first. Neither model nor data is read.

    Returns:
        For each run `run`, `kind`, `dataset`, `method`, `seed`, `state`, `tow` (None if unknown) and `changed` (UTC, ISO 8601); for a
        folder whose record cannot be read `run` and `error`.

    Raises:
        UsageError: The folder is missing.
    """
    root = Path(options.root)
    if root == RUNS and not root.exists():
        return []
    if not root.is_dir():
        raise UsageError(f"There is no folder {root}; name the folder that holds the runs.")
    files = [file for file in root.glob(f"*/{RECORD}") if not file.parent.name.startswith(".")]  # scratch folders of killed processes
    return [_row(file) for file in sorted(files, key=lambda file: (-file.stat().st_mtime, file))]


def _row(file: Path) -> dict[str, Any]:
    try:
        run = Run.open(file.parent)
    except OneshuiError as error:
        return {"run": str(file.parent), "error": str(error)}
    record = run.record
    changed = datetime.datetime.fromtimestamp(file.stat().st_mtime, datetime.UTC)
    return {
        "run": str(run.path),
        "kind": record.kind,
        "dataset": record.dataset.get("name"),
        "method": record.report.get("method"),
        "seed": record.seed,
        "state": record.state,
        "tow": stored_metrics(run).get("tow"),
        "changed": changed.isoformat(timespec="seconds"),
    }


def stored_metrics(run: Run) -> dict[str, Any]:
    """Return what `evaluate` measured of a run; an empty object if nothing was measured or the file is damaged."""
    try:
        return read_metrics(run.path)
    except OneshuiError:
        return {}
