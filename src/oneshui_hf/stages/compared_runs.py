"""The runs that a run is compared with, as far as they are on this disk: its original model and the oracle."""

from __future__ import annotations

from pathlib import Path

from ..errors import OneshuiError, UsageError
from ..runs import RECORD, Run


def find_original(run: Run, given: str | None) -> Run | None:
    """Return the original model that a run is compared with: the named one, the run itself, or its parent."""
    if given:
        original = Run.open(given)
        if original.record.kind != "original":
            raise UsageError(f"{given} is an {original.record.kind} model; --original takes the original.")
        return original
    if run.record.kind == "original":
        return run
    parent = (run.record.parent or {}).get("run")  # a published run contains no path
    return Run.open(parent) if parent and Path(parent).is_dir() else None


def open_oracle(given: str) -> Run:
    """Open the run that `--oracle` names."""
    oracle = Run.open(given)
    if oracle.record.kind != "oracle":
        raise UsageError(f"{given} is an {oracle.record.kind} model; --oracle takes a model made by `oneshui retrain`.")
    return oracle


def find_oracle(original: Run | None, given: str | None) -> Run | None:
    """Return the oracle that a run is compared with: the named one, or ORIGINAL-oracle if it has finished training."""
    if given:
        return open_oracle(given).require_complete()
    default = Path(f"{original.path}-oracle") if original else None
    found = Run.open(default) if default and (default / RECORD).exists() else None
    return found if found and found.record.state == "complete" else None


def runs_for_comparison(run: Run) -> tuple[Run | None, Run | None]:
    """Return the original and the oracle of a run, as far as they are on this disk and can be read."""
    try:
        original = find_original(run, None)
        return original, find_oracle(original, None)
    except OneshuiError:
        return None, None
