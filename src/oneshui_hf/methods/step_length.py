"""Steps of a given length in weight space, and choosing that length on simulated requests.

A raw gradient step has no natural scale: 0.1 times the gradient of a freshly made network's output can destroy a model. A step of given
length along a unit direction cannot surprise; its length is a share of the model's own norm and is tried out while data is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..seeding import generator
from .base import Context, Cost, DataAccess, StepOptions
from .simulation import Rehearsal, Simulated, damage, mean, simulate
from .weight_space import Weights, moved, norm, parameters

SHORTEST = 2e-5  # share of the model's norm
DOUBLINGS = 12  # lengths tried, up to 0.04 of the norm; where all are within the bound, the refinements go on to 0.07
REFINEMENTS = 2  # lengths tried between the last that was within the bound and the first that was not
PHOTOS = 256  # most of each kind on which a step is judged


def choose_length(
    model: nn.Module,
    data: DataAccess,
    direction: Callable[[Simulated], Weights],
    options: StepOptions,
    context: Context,
) -> tuple[float, list[dict[str, Any]]]:
    """Choose a step length on simulated requests: the best one that costs the others no more than a bound.

    Lengths are doubled until the score on retain falls by more than `options.max_damage` points; two more are tried within the last
    doubling. Of those within the bound the one with the best ToW is taken, where the level of strangers (the original model's score on
    val) stands in for the oracle's on the forget images, and the original's own scores for the oracle's on retain and val. Where none is
    within the bound, the shortest is taken, with a warning.

    Args:
        model: The original model.
        data: Gives `train` and `val`.
        direction: From a request to the unit direction of its step.
        options: How many requests to simulate, with which photos, and what the step may cost.
        context: Of the preparation.

    Returns:
        The length (absolute), and a row per length tried, by length, the first of length 0 (doing nothing).

    Raises:
        OneshuiError: A simulated request takes in all training people.
    """
    draws = generator(context.seed, "calibration")
    trials = [Rehearsal(model, data.train, data.val, case, context, draws, PHOTOS) for case in _cases(data, context, draws, options)]
    directions = [direction(trial.request) for trial in trials]
    scale = norm(parameters(model)).item()
    rows: list[dict[str, Any]] = []

    def attempt(share: float) -> bool:
        """Try a length; return whether its cost is within the bound."""
        results = [trial.judge(moved(model, step, share * scale)) for trial, step in zip(trials, directions, strict=True)]
        rows.append({"length": share} | mean(results))
        return damage(rows[-1], rows[0]) <= options.max_damage

    rows.append({"length": 0.0} | mean([trial.nothing() for trial in trials]))
    share, within = SHORTEST, 0.0
    for _ in context.reporter.track(range(DOUBLINGS), "Choosing the step length"):
        if not attempt(share):
            break
        share, within = share * 2, share
    for _ in range(REFINEMENTS if within else 0):
        middle = (within * share) ** 0.5
        within, share = (middle, share) if attempt(middle) else (within, middle)

    nothing, shortest = rows[:2]
    fit = [row for row in rows[1:] if damage(row, nothing) <= options.max_damage]
    if not fit:
        context.reporter.warn(
            f"On simulated requests even the shortest step cost the others {damage(shortest, nothing):.1f} points of score, "
            f"more than the {options.max_damage:g} allowed; it is taken all the same, so look at retain and test before using its results."
        )
    best = max(fit or [shortest], key=lambda row: row["tow"])
    if not best["tow"] > nothing["tow"]:  # NaN counts as no better
        context.reporter.warn(
            f"On simulated requests no step was better than doing nothing (ToW {nothing['tow']:.1f}, the best step {best['tow']:.1f})."
        )
    return best["length"] * scale, sorted(rows, key=lambda row: row["length"])


def length_cost(data: DataAccess, options: StepOptions, context: Context) -> Cost:
    """Return what `choose_length` takes at most, but for the directions."""
    photos = sum(min(PHOTOS, len(faces)) for faces in (data.train, data.train, data.val))
    attempts = 1 + DOUBLINGS + REFINEMENTS
    return Cost(forward=options.calibration * attempts * photos, backward=options.calibration * max(1, context.request_size))


def _cases(data: DataAccess, context: Context, draws: torch.Generator, options: StepOptions) -> list[Simulated]:
    """Return simulated requests of the size of the run's own."""
    size = max(1, context.request_size)
    cases: list[Simulated] = []
    while len(cases) < options.calibration:
        cases += simulate(data.train, (size, size), draws, unseen=options.unseen_support)
    return cases[: options.calibration]
