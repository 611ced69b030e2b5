"""The new model is in service, as the operator states. What `oneshui evaluate` measured on it is recorded with it.

oneshui requests serve --run RUN
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from ...desk.desk import Desk, select
from ...desk.entries import Draft
from ...desk.ledger import Chain
from ...desk.signing import SigningKey
from ...errors import UsageError
from ...metrics.schema import read_metrics
from ...runs import METRICS, Run
from ..desk_options import ServeOptions

SETS = ("retain", "val", "test")  # `forget` is that of the split, not the people of the requests


def serve_requests(desk: Desk, run: Run, options: ServeOptions, now: datetime | None = None) -> dict[str, Any]:
    """Record that a model is in service, for the requests that were applied to it.

    Returns:
        `run` and `requests`.

    Raises:
        UsageError: No request was applied to this model, or a named one was not, or is in another state.
        OneshuiError: The weights or the metrics of the run have changed.
    """
    weights = run.require_complete().weights
    content = {"weights": weights, **_scores(run)}
    found: list[str] = []

    def draft(chain: Chain, key: SigningKey) -> list[Draft]:
        for request in select(chain.requests, options.requests, "verified"):
            if options.requests:
                request.require("served")
            verified = request.last("verified")
            if verified is not None and verified.content["weights"] == weights:
                found.append(request.id)
            elif options.requests:
                raise UsageError(f"{request.id} was applied to another model than the one in {run.path}; name the run of its receipt.")
        if not found:
            raise UsageError(f"No request waits for the model in {run.path} to be in service; `oneshui requests list` shows their states.")
        return [Draft("served", id, content) for id in found]

    desk.requests()
    desk.ledger.append(draft, now)
    return {"run": str(run.path), "requests": found}


def _scores(run: Run) -> dict[str, Any]:
    """Return the scores that were measured, with the ends of their intervals."""
    metrics = read_metrics(run.path) if (run.path / METRICS).exists() else {}
    score, ends = metrics.get("score"), metrics.get("intervals") or {}
    scores = {name: metrics[name][score] for name in SETS if isinstance((metrics.get(name) or {}).get(score), float)} if score else {}
    return {
        "score": score if scores else None,
        "scores": scores,
        "intervals": {name: found for name in scores if (found := (ends.get(name) or {}).get(score))},
    }
