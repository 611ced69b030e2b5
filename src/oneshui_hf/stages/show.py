"""One run: what it is, what it was made from, its scores, and which methods are prepared for it.

oneshui show RUN
"""

from __future__ import annotations

from typing import Any

from ..errors import OneshuiError
from ..runs import METHODS, PREDICTIONS, SPLIT, TUNED, Run, read_object
from ..validation import Schema, check_fields
from .list_runs import stored_metrics

ARTEFACT = "artefact.json"
SCORES = ("score", "retain", "forget", "val", "test", "tow", "gap_closure")


class _Preparation(Schema):
    seconds: float | None = None


class _Artefact(Schema):
    """The header of an artefact, as far as it is shown."""

    report: _Preparation
    options: dict[str, Any]


def show(run: Run) -> dict[str, Any]:
    """Describe a run from its record. Neither model nor data is loaded.

    Returns:
        `run`, `kind`, `state`, `seed`; `dataset` (name, task, labels, images, identities); `recipe` (training options); `parent` (run and
        hash of its weights); `request` (of an unlearned model: method, images, identities, labels, seconds); `history` (last epoch kept);
        `scores` as measured by `evaluate`, empty if not evaluated; `prepared`: per method size and seconds; `tuned`: presets; `files`.
    """
    record = run.record
    metrics = stored_metrics(run)
    return {
        "run": str(run.path),
        "kind": record.kind,
        "state": record.state,
        "seed": record.seed,
        "dataset": {key: record.dataset.get(key) for key in ("name", "task", "images", "identities", "labels")},
        "recipe": record.options,
        "parent": record.parent,
        "request": _request(record.report) if record.kind == "unlearned" else None,
        "split": record.report.get("split"),
        "epoch": kept_epoch(record.report),
        "scores": {name: metrics.get(name) for name in SCORES} if metrics else {},
        "prepared": [_prepared(run, name) for name in prepared_methods(run)],
        "tuned": sorted(file.stem for file in (run.path / TUNED).glob("*.json")),
        "files": {
            "weights": run.has_weights,
            "split": (run.path / SPLIT).exists(),
            "predictions": (run.path / PREDICTIONS).is_dir(),
        },
        "versions": record.versions,
    }


def prepared_methods(run: Run) -> list[str]:
    """Return the names of the methods that are prepared for a run."""
    return sorted(file.parent.name for file in (run.path / METHODS).glob(f"*/{ARTEFACT}") if not file.parent.name.startswith("."))


def kept_epoch(report: dict[str, Any]) -> dict[str, Any] | None:
    """Return the history's entry of the epoch whose weights were kept."""
    history = report.get("history")
    if not isinstance(history, list) or not history:
        return None
    return dict(history[(report.get("best_epoch") or len(history)) - 1])


def _request(report: dict[str, Any]) -> dict[str, Any]:
    names = ("method", "photos", "people", "labels", "source", "seconds", "destroyed", "method_options")
    return {name: report.get(name) for name in names}


def _prepared(run: Run, method: str) -> dict[str, Any]:
    folder = run.artefact(method)
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    try:
        header = read_object(folder / ARTEFACT)
        check_fields(_Artefact, header, folder / ARTEFACT)
    except OneshuiError as error:
        return {"method": method, "bytes": size, "error": str(error)}
    return {"method": method, "bytes": size, "seconds": header["report"].get("seconds"), "options": header["options"]}
