"""Where the learning of forget keys starts: silent, and listening where the person's own gradient lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from oneshui_hf.methods import Context, generator

from ..common.input_covariance import Layer
from ..common.kl import divergence
from .batches import Lessons, both_ways, shown
from .low_rank import Factors, Keys
from .preconditioner import Coordinates

OVERSAMPLED, POWERS, NOISE = 4, 2, 1e-3  # of the search for a gradient's leading directions; a share of the largest singular value


def start(
    model: nn.Module, layers: Mapping[str, list[Layer]], lessons: Lessons, cohort: Sequence[int], space: Coordinates, context: Context
) -> Keys:
    """Return V and R that a cohort starts from: they change nothing yet (V = 0) and listen (R) where the person's gradient lies.

    R are about the leading right singular vectors of the gradient, in these coordinates, of the person's part of the objective.
    """
    options, kind = lessons.options, context.task.kind
    weights = {name: weight for name, weight in model.named_parameters() if name in layers}
    downs = {name: torch.zeros(len(cohort), options.rank, weight[0].numel(), device=context.device) for name, weight in weights.items()}
    for place in context.mine(range(len(cohort))):
        draws = generator(context.seed, "start", cohort[place])
        positions = lessons.photos_of(cohort[place], draws)
        moved = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        now = torch.cat([said.logits[positions] for said in lessons.known])
        positions, mirrored = both_ways(positions)
        wanted = lessons.targets(positions, now, mirrored)
        for rows in torch.arange(len(positions)).split(options.chunk):
            pixels = shown(lessons.train, positions[rows], mirrored[rows], context.device)
            logits = torch.func.functional_call(model, moved, kwargs={"pixel_values": pixels}).logits
            divergence(wanted[rows].to(context.device), logits, kind).sum().backward()
        for name, weight in moved.items():
            g = torch.zeros_like(weight) if weight.grad is None else weight.grad
            downs[name][place] = row_space(space.up[name] @ g.flatten(1) @ space.down[name], options.rank, draws)
    return {
        name: Factors(
            torch.zeros(len(cohort), len(weights[name]), options.rank, device=context.device), context.accelerator.reduce(down, "sum")
        )
        for name, down in downs.items()
    }


def row_space(matrix: torch.Tensor, rank: int, draws: torch.Generator) -> torch.Tensor:
    """Return orthonormal rows (rank, d), about the leading right singular vectors of a matrix (out, d).

    By subspace iteration from random vectors (Halko, Martinsson, Tropp 2011, algorithms 4.4 and 5.1), since a whole decomposition of every
    weight for every person would take longer than learning. Rows whose singular value is that of rounding errors are zero, as are those
    beyond d: a direction out of noise would be another one on another machine, and Adam would make as much of it as of a real one.
    """
    wide = matrix.double()
    basis = torch.randn(wide.shape[1], min(rank + OVERSAMPLED, wide.shape[1]), generator=draws, dtype=torch.float64).to(wide)
    for _ in range(POWERS):
        basis = torch.linalg.qr(wide.mT @ (wide @ basis)).Q
    _, sizes, leading = torch.linalg.svd(wide @ basis, full_matrices=False)
    rows = ((leading * (sizes > NOISE * sizes[0]).unsqueeze(1)) @ basis.mT)[:rank]
    return torch.nn.functional.pad(rows, (0, 0, 0, rank - len(rows))).to(matrix)
