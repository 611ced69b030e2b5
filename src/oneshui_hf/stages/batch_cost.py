"""What a batch of requests costs the others: retain and val scores against the number of people who are forgotten.

`oneshui prepare` measures them on simulated requests of growing size and keeps the means in the report of the artefact; `oneshui requests
apply` reads them. A request of size k forgets the first k people of a draw, so sizes are compared on the same people and the same photos.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import OneshuiError
from ..reporting import SILENT

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..data.face_set import FaceSet
    from ..data.schema import Task
    from ..methods.artefact import Artefact
    from ..methods.base import Context, Method
    from ..methods.simulation import SimulatedRequest

SIMULATED = "simulated_batches"  # key of an artefact's report
STEPS, LARGEST = (1, 2, 5), 100  # sizes are 1, 2, 5, 10, 20, 50, 100
DRAWS = 2
MAX_PHOTOS = 256  # per set, on which a model is scored
PURPOSE = "simulated batches"


def batch_sizes(people: int) -> list[int]:
    """Return the numbers of people of simulated requests, ascending, for this number of people who can be drawn.

    At least half of them are left, and the largest size is in the list.
    """
    largest = min(people // 2, LARGEST)
    sizes = [step * 10**power for power in range(3) for step in STEPS]
    return [*(size for size in sizes if size < largest), largest] if largest else []


def simulate_batches(
    method: Method[Any], model: nn.Module, sets: Mapping[str, FaceSet], artefact: Artefact, options: Any, context: Context
) -> dict[str, Any]:
    """Return the entry of an artefact's report: the scores against the number of people; empty, with a warning, if they are not known.

    Args:
        method: The method that was prepared.
        model: The original model.
        sets: Of the run; train and val, and what the method reads at a request.
        artefact: What was prepared. It is not changed, and no data of a person is destroyed.
        options: Of the method.
        context: Of the preparation.
    """
    try:
        draws = _draws(type(method), sets["train"], context.seed)
        curves = [_curve(method, model, sets, draw, number, artefact, options, context) for number, draw in enumerate(draws)]
    except (OneshuiError, RuntimeError) as error:  # torch raises RuntimeError; an hour's preparation must not be lost
        context.reporter.warn(f"What a batch of requests costs the others is not known, since no request could be simulated: {error}")
        return {}
    photos = {"retain": min(len(sets["train"]), MAX_PHOTOS), "val": min(len(sets["val"]), MAX_PHOTOS)}
    rows = [{name: sum(curve[place][name] for curve in curves) / len(curves) for name in curves[0][0]} for place in range(len(curves[0]))]
    return {SIMULATED: {"draws": len(draws), "photos": photos, "rows": [row | {"people": int(row["people"])} for row in rows]}}


def simulation_cost(method: type[Method[Any]], sets: Mapping[str, FaceSet], seed: int) -> tuple[int, int]:
    """Return how many models are made by simulated requests, and how many photos pass through them to be scored."""
    try:
        models = sum(map(len, _draws(method, sets["train"], seed)))
    except OneshuiError:
        return 0, 0
    return models, (models + DRAWS) * sum(min(len(sets[name]), MAX_PHOTOS) for name in ("train", "val"))


def val_sample(val: FaceSet, task: Task, seed: int) -> FaceSet:
    """Return the photos of unseen identities on which models are scored: the same for the same seed."""
    from ..methods.simulation import sample
    from ..seeding import generator

    return _scorable(val, sample(len(val), MAX_PHOTOS, generator(seed, PURPOSE, "val")), task)


def _draws(method: type[Method[Any]], train: FaceSet, seed: int) -> list[list[SimulatedRequest]]:
    """Return the requests of each draw, of growing size.

    The support images are reserved photos, which the model has not seen, where they matter and exist.
    """
    from ..methods.simulation import simulate
    from ..seeding import generator

    reserved = train.reserved.positions_of if train.reserved is not None else {}
    unseen = not method.per_identity and any(person not in train.excluded_from_simulation for person in reserved)
    everybody, draws = len(train.positions_of), []
    for number in range(DRAWS):
        (everyone,) = simulate(train, (everybody, everybody), generator(seed, PURPOSE, number), unseen=unseen)
        sizes = batch_sizes(len(everyone.people))
        if not sizes:
            raise OneshuiError("there are too few people.")
        draws.append([everyone.first(size, train) for size in sizes])
    return draws


def _curve(
    method: Method[Any],
    model: nn.Module,
    sets: Mapping[str, FaceSet],
    requests: Sequence[SimulatedRequest],
    number: int,
    artefact: Artefact,
    options: Any,
    context: Context,
) -> list[dict[str, float]]:
    """Return the scores of the original model and after each request of one draw."""
    from ..methods.resume import ResumeState
    from ..methods.simulation import sample, unlearn_simulated
    from ..seeding import generator

    train, task = sets["train"], context.task
    others = train.positions_without(requests[-1].people)
    retain = _scorable(train, sample(others, MAX_PHOTOS, generator(context.seed, PURPOSE, "retain", number)), task)
    measured = {"retain": retain, "val": val_sample(sets["val"], task, context.seed)}
    rows = [{"people": 0, **_scores(model, measured, context)}]
    for request in context.reporter.track(requests, "Simulating batches"):
        # Without the preparation's saved state: a request computes sums of the same names over other photos.
        alone = dataclasses.replace(
            context, report={}, successor=None, resume_state=ResumeState(), reporter=SILENT, request_size=len(request.people)
        )
        unlearned = unlearn_simulated(method, model, sets, request, artefact, options, alone)
        rows.append({"people": len(request.people), **_scores(unlearned, measured, context)})
    return rows


def _scorable(faces: FaceSet, positions: torch.Tensor, task: Task) -> FaceSet:
    """Return the photos at these positions.

    Raises:
        OneshuiError: No label varies over them, so that they have no score.
    """
    from ..metrics.functional import is_scorable

    drawn = faces.subset(positions)
    if not is_scorable(drawn.labels, task):
        raise OneshuiError("no label varies over the photos that are left.")
    return drawn


def _scores(model: nn.Module, measured: Mapping[str, FaceSet], context: Context) -> dict[str, float]:
    from ..metrics.functional import score
    from ..models.outputs import predict

    return {name: score(predict(model, faces, context.accelerator), faces.labels, context.task) for name, faces in measured.items()}


@dataclasses.dataclass(frozen=True)
class BatchCost:
    """How many points of score the others lose when this many people are forgotten; negative where the score rises.

    Attributes:
        people: Their number.
        retain: On photos of other training identities.
        val: On photos of unseen identities.
        simulated: The largest number of people that was simulated. Beyond it, the line through the last two sizes is continued.
    """

    people: int
    retain: float
    val: float
    simulated: int


def estimate_cost(report: Mapping[str, Any], people: int) -> BatchCost | None:
    """Return what it costs the others that this many people are forgotten; None if an artefact's report does not contain it.

    Args:
        report: The report of an artefact.
        people: Number of people who are forgotten in the model, counted from the one that was prepared.
    """
    rows = (report.get(SIMULATED) or {}).get("rows")
    if not isinstance(rows, list) or len(rows) < 2:
        return None
    drops = {name: [rows[0][name] - row[name] for row in rows] for name in ("retain", "val")}
    sizes = [row["people"] for row in rows]
    found = {name: _interpolate(sizes, values, people) for name, values in drops.items()}
    return BatchCost(people, found["retain"], found["val"], sizes[-1])


def scored_before(report: Mapping[str, Any]) -> float | None:
    """Return the score of the prepared model on `val_sample`; None if an artefact's report does not contain it."""
    rows = (report.get(SIMULATED) or {}).get("rows")
    return float(rows[0]["val"]) if isinstance(rows, list) and rows else None


def _interpolate(sizes: Sequence[int], values: Sequence[float], size: int) -> float:
    """Return the piecewise linear function through the points at a size; beyond the last one, its line continues unless it falls."""
    place = next((number for number, known in enumerate(sizes) if known >= size), len(sizes) - 1)
    place = max(place, 1)
    slope = (values[place] - values[place - 1]) / (sizes[place] - sizes[place - 1])
    if size > sizes[-1]:
        return values[-1] + max(slope, 0.0) * (size - sizes[-1])
    return values[place - 1] + slope * (size - sizes[place - 1])
