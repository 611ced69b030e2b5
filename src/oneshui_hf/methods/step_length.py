"""The step length of one-step methods, chosen on simulated requests.

The scale of a raw gradient is arbitrary: 0.1 times the gradient of a newly initialised network's output can destroy a model. A step along
a unit direction has a known length, given as a share of the norm of the model's parameters and tested while training data is available.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..seeding import generator
from .base import Context, Cost, DataAccess, StepOptions
from .simulation import SimulatedRequest, SimulatedRequestTrial, mean_scores, retain_drop, scorable_requests, simulate
from .weight_space import Weights, displaced, norm, parameters

SHORTEST = 2e-5  # share of the parameters' norm
DOUBLINGS = 12  # lengths tried, up to 0.04 of the norm; up to 0.07 with refinements, where all lengths are within the bound
REFINEMENTS = 2  # lengths tried between the longest within the bound and the shortest beyond it
MAX_PHOTOS = 256  # most photos per set on which a step is scored


def choose_length(
    model: nn.Module,
    data: DataAccess,
    direction: Callable[[SimulatedRequest], Weights],
    options: StepOptions,
    context: Context,
) -> tuple[float, list[dict[str, Any]]]:
    """Return the step length with the highest ToW on simulated requests, among those within a bound on the retain drop.

    The length is doubled until the score on retain drops by more than `options.max_retain_drop` points. Two more lengths are tried within
    the last doubling. `SimulatedRequestTrial.score` describes the ToW. If no length is within the bound, the shortest one is returned,
    with a warning.

    Args:
        model: The original model.
        data: Provides `train` and `val`.
        direction: Maps a simulated request to the unit direction of its step.
        options: Number and kind of simulated requests, and the bound on the retain drop.
        context: Of the preparation.

    Returns:
        The length (absolute), and one row per length tried: `length` (share of the norm), the mean score of each set, and `tow`. Rows are
        in order of length; the first has length 0 (the original model).

    Raises:
        OneshuiError: A simulated request takes in all training identities, or has no score.
    """
    random = generator(context.seed, "calibration")
    requests = _simulate_requests(data, context, random, options)
    trials = [SimulatedRequestTrial(model, data.train, data.val, request, context, random, MAX_PHOTOS) for request in requests]
    directions = [direction(trial.request) for trial in trials]
    scale = norm(parameters(model)).item()
    rows: list[dict[str, Any]] = [{"length": 0.0} | mean_scores([trial.baseline() for trial in trials])]
    state = context.resume_state.part("lengths")
    known = {row["length"]: row for row in found[1]["rows"]} if (found := state.load()) else {}

    def is_within_bound(row: dict[str, Any]) -> bool:
        return retain_drop(row, rows[0]) <= options.max_retain_drop

    def try_length(share: float) -> bool:
        """Score a length, or take its score from the saved state; return whether its retain drop is within the bound."""
        if share in known:
            rows.append(known[share])
        else:
            scores = [trial.score(displaced(model, step, share * scale)) for trial, step in zip(trials, directions, strict=True)]
            rows.append({"length": share} | mean_scores(scores))
        if state.should_save():
            state.save({}, {"rows": rows})
        return is_within_bound(rows[-1])

    share, longest_within = SHORTEST, 0.0
    with state.stoppable():
        for _ in context.reporter.track(range(DOUBLINGS), "Choosing the step length"):
            if not try_length(share):
                break
            share, longest_within = share * 2, share
        for _ in range(REFINEMENTS if longest_within else 0):
            middle = (longest_within * share) ** 0.5
            longest_within, share = (middle, share) if try_length(middle) else (longest_within, middle)

    baseline, shortest = rows[:2]
    candidates = [row for row in rows[1:] if is_within_bound(row)]
    if not candidates:
        context.reporter.warn(
            f"On simulated requests even the shortest step lowered the retain score by {retain_drop(shortest, baseline):.1f} points, "
            f"more than the {options.max_retain_drop:g} allowed; it is used anyway, so check retain and test before using its results."
        )
    best = max(candidates or [shortest], key=lambda row: row["tow"])
    if not best["tow"] > baseline["tow"]:  # also true for NaN
        context.reporter.warn(
            f"On simulated requests no step was better than doing nothing (ToW {baseline['tow']:.1f}, the best step {best['tow']:.1f})."
        )
    return best["length"] * scale, sorted(rows, key=lambda row: row["length"])


def length_cost(data: DataAccess, options: StepOptions, context: Context) -> Cost:
    """Return an upper bound on the cost of `choose_length`, if a direction takes one backward pass per support image."""
    photos = sum(min(MAX_PHOTOS, len(faces)) for faces in (data.train, data.train, data.val))
    attempts = 1 + DOUBLINGS + REFINEMENTS
    return Cost(forward=options.calibration * attempts * photos, backward=options.calibration * max(1, context.request_size))


def _simulate_requests(data: DataAccess, context: Context, random: torch.Generator, options: StepOptions) -> list[SimulatedRequest]:
    """Return `options.calibration` simulated requests with a score, each with as many identities as the run's own request."""
    size = max(1, context.request_size)
    requests: list[SimulatedRequest] = []
    while len(requests) < options.calibration:
        simulated = simulate(data.train, (size, size), random, unseen=options.unseen_support)
        requests += scorable_requests(simulated, data.train, context.task)
    return requests[: options.calibration]
