"""The models that a run was computed from, as far as their runs are on this disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...runs import RECORD, Run


def ancestors(run: Run) -> Iterator[str]:
    """Yield the hashes of the weights from which an unlearned model was computed, the nearest first."""
    seen = set[Path]()
    while (parent := run.record.parent) and run.record.kind == "unlearned" and run.path not in seen:
        seen.add(run.path)
        yield str(parent.get("weights"))
        if not (Path(str(parent.get("run"))) / RECORD).is_file():
            return
        run = Run.open(str(parent["run"]))


def trained_from(run: Run) -> Iterator[str]:
    """Yield the hashes of the weights of the run, and of its ancestors, whose checkpoint the training of a run started from."""
    source = run.record.options.get("model")
    if isinstance(source, str) and (Path(source) / RECORD).is_file():
        start = Run.open(source)
        yield str(start.record.weights)
        yield from ancestors(start)
