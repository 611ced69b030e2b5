"""Steps of a given length in weight space, and choosing that length on simulated requests.

A raw gradient step has no natural scale: 0.1 times the gradient of a freshly made network's output can destroy a model. A step of given
length along a unit direction cannot surprise; its length is a share of the model's own norm and is tried out while data is there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import OneshuiError
from ..metrics.functional import tug_of_war
from ..metrics.summary import score
from ..models.outputs import predict
from ..randomness import generator
from .contract import Context, DataAccess
from .requests import Simulated, sample, simulate

Weights = dict[str, torch.Tensor]

LENGTHS = tuple(2e-5 * 2**k for k in range(12))  # shares of the model's norm: 2e-5 to 4e-2
CALIBRATION_PHOTOS = 256
POINTS_LOST = 15.0  # the search stops when ToW has fallen this far below its best


def inner(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the inner product of two sets of weights."""
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def norm(a: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the Euclidean norm of a set of weights."""
    return inner(a, a).sqrt()


def unit(step: Mapping[str, torch.Tensor]) -> Weights:
    """Return a step of length 1 in the same direction.

    Raises:
        OneshuiError: The step is zero or not finite, so it has no direction.
    """
    length = norm(step)
    if not torch.isfinite(length) or length == 0:
        raise OneshuiError("The photos give no usable gradient, so there is no direction to step in; try another photo.")
    return {name: part / length for name, part in step.items()}


def parameters(model: nn.Module) -> Weights:
    """Return a model's parameters by name, detached."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def moved(model: nn.Module, step: Mapping[str, torch.Tensor], length: float = 1.0) -> nn.Module:
    """Return a copy of a model with `length * step` added to its parameters."""
    new = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            if name in step:
                parameter.add_(step[name], alpha=length)
    return new


def choose_length(
    model: nn.Module,
    data: DataAccess,
    direction: Callable[[Simulated], Weights],
    context: Context,
    *,
    unseen: bool,
    requests: int = 3,
    lengths: Sequence[float] = LENGTHS,
) -> tuple[float, list[dict[str, Any]]]:
    """Choose a step length on simulated requests.

    Each candidate is judged by the mean ToW over requests of training people, in which the level of strangers (the original model's
    score on val) stands in for the oracle's on the forget images, and the original's own scores for the oracle's on retain and val.

    Args:
        model: The original model.
        data: Gives `train` and `val`.
        direction: From a request to the unit direction of its step.
        context: Of the preparation.
        unseen: Whether the simulated photos are reserved ones.
        requests: How many requests to simulate.
        lengths: Candidates, rising, as shares of the model's norm.

    Returns:
        The best length (absolute), and a row per candidate tried, the first of length 0 (doing nothing).
    """
    train, val = data.train, data.val
    draws = generator(context.seed, "calibration")
    size = max(1, context.request_size)
    cases: list[tuple[Weights, torch.Tensor, torch.Tensor]] = []
    while len(cases) < requests:
        for request in simulate(train, (size, size), draws, unseen=unseen):
            others = torch.isin(train.identities, torch.tensor(request.people), invert=True).nonzero().squeeze(1)
            forget = sample(request.forget, CALIBRATION_PHOTOS, draws)
            cases.append((direction(request), forget, sample(others, CALIBRATION_PHOTOS, draws)))
            if len(cases) == requests:
                break
    strangers = sample(len(val), CALIBRATION_PHOTOS, draws)

    def measure(candidate: nn.Module, forget: torch.Tensor, retain: torch.Tensor) -> dict[str, float]:
        sets = {"forget": (train, forget), "retain": (train, retain), "val": (val, strangers)}
        scores = {}
        for name, (faces, positions) in sets.items():
            logits = predict(candidate, faces.subset(positions), context.accelerator)
            scores[name] = score(logits, faces.labels[positions], context.task)
        return scores

    before = [measure(model, forget, retain) for _, forget, retain in cases]
    scale = norm(parameters(model)).item()
    rows: list[dict[str, Any]] = []
    for length in context.reporter.track([0.0, *lengths], "Choosing the step length"):
        total, means = 0.0, {"forget": 0.0, "retain": 0.0, "val": 0.0}
        for (unit, forget, retain), start in zip(cases, before, strict=True):
            now = start if length == 0 else measure(moved(model, unit, length * scale), forget, retain)
            total += tug_of_war(now, {"forget": start["val"], "retain": start["retain"], "val": start["val"]}) / requests
            means = {name: means[name] + now[name] / requests for name in means}
        rows.append({"length": length, "tow": total, **means})
        if total < max(row["tow"] for row in rows) - POINTS_LOST:
            break
    best = max(rows[1:], key=lambda row: row["tow"])
    if best["tow"] <= rows[0]["tow"]:
        context.reporter.warn(
            f"On simulated requests no step was better than doing nothing (ToW {rows[0]['tow']:.1f}, the best step {best['tow']:.1f})."
        )
    return best["length"] * scale, rows
