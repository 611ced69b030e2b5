"""What a batch costs the others, estimated before it from simulated requests, and measured after it on val."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...desk.entries import estimated_people, estimated_points
from ...errors import OneshuiError, UsageError
from ...methods.artefact import read_header
from ...methods.base import Method
from ...metrics.functional import score
from ...models.load import load_model
from ...models.outputs import predict
from ...reporting import Reporter
from ...runs import RECORD, Run
from ..batch_cost import estimate_cost, scored_before, val_sample
from ..distributed import make_accelerator
from ..method_choice import nearest_prepared_run
from ..run_data import open_data

DEFAULT_BUDGET = 2.0  # points of score
NO_PREPARATION = "the method prepares nothing, so no requests were simulated"
NO_SIMULATION = "the preparation keeps no simulated requests (an earlier version made it, or --no-simulate-batches was given)"
NO_COUNT = "how many people were forgotten before is not known, since a run between this model and its original is missing"


def estimate_batch(
    run: Run, name: str, method: type[Method[Any]], people: int, budget: float | None, reporter: Reporter
) -> dict[str, Any] | None:
    """Return what a batch costs the others, with everybody forgotten before it, as the ledger contains it; None with a note if unknown.

    Args:
        run: The model.
        name: Name of the method.
        method: The method.
        people: Number of people in the batch.
        budget: The given budget, in points.
        reporter: For the note.

    Raises:
        UsageError: A budget is given and the cost is not known.
    """
    before = people_forgotten(run)
    cost = None if before is None else estimate_cost(_prepared_report(run, name, method), before + people)
    if cost is None or before is None:
        reason = NO_PREPARATION if method.prepares == "never" else NO_COUNT if before is None else NO_SIMULATION
        if budget is not None:
            raise UsageError(f"--budget cannot be checked: {reason}. Omit --budget, or use a preparation that has simulated requests.")
        reporter.note(f"What the batch costs the others is not known: {reason}.")
        return None
    return {
        "people": cost.people,
        "people_before": before,
        "retain": round(cost.retain, 3),
        "val": round(cost.val, 3),
        "simulated": cost.simulated,
        "budget": DEFAULT_BUDGET if budget is None else budget,
    }


def require_within_budget(estimate: Mapping[str, Any]) -> None:
    """Refuse a batch that costs the others too much.

    Raises:
        OneshuiError: The estimate is larger than the budget.
    """
    if (lost := estimated_points(estimate)) > estimate["budget"]:
        raise OneshuiError(
            f"A retraining is due: forgetting {estimated_people(estimate)} is estimated to cost the others {lost:.2f} points "
            f"of score, more than the budget of {estimate['budget']:g}. Train with --suppress LEDGER, name fewer requests, or raise "
            "--budget. Nothing was changed."
        )


def people_forgotten(run: Run) -> int | None:
    """Return how many people were forgotten from the original to this model; None if a run in between is not on the disk."""
    count, found, seen = 0, run, set[Path]()
    while found.record.kind == "unlearned":
        report, parent = found.record.report, found.record.parent or {}
        people, path = report.get("people"), Path(str(parent.get("run")))
        count += people if isinstance(people, int) else int(report.get("photos") or 0)
        seen.add(found.path.resolve())
        if path in seen or not (path / RECORD).is_file() or (earlier := Run.open(path)).record.weights != parent.get("weights"):
            return None
        found = earlier
    return count


def measure_val_loss(made: Run, run: Run, name: str, method: type[Method[Any]], reporter: Reporter) -> float | None:
    """Return how many points of score val has lost since the preparation, on the photos of the estimate; None if it cannot be measured.

    It is called after the request was applied, so that a failure must not keep the request from being recorded.

    Args:
        made: The new model.
        run: The model before.
        name: Name of the method.
        method: The method.
        reporter: For progress.
    """
    report = _prepared_report(run, name, method)
    before = scored_before(report)
    if before is None:
        return None
    accelerator = make_accelerator()
    try:
        val = open_data(made, accelerator, reporter=reporter).sets["val"]
        model, _, task = load_model(made.path, accelerator.device)
        faces = val_sample(val, task, int(report.get("seed") or 0))
        return round(before - score(predict(model, faces, accelerator), faces.labels, task), 3)
    except OneshuiError:  # the data was moved or has changed, or logits are not finite
        return None


def _prepared_report(run: Run, name: str, method: type[Method[Any]]) -> Mapping[str, Any]:
    """Return the report of the artefact that a request uses; empty if there is none."""
    folder = nearest_prepared_run(run, name, method).artefact(name)
    report: Mapping[str, Any] = read_header(folder)["report"] if folder.is_dir() else {}
    return report
