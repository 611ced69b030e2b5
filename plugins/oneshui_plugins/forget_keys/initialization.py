"""Initial values of the updates: zero output, and inputs in the directions of the identity's own gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from oneshui_hf.methods import Context, generator

from ..common.input_covariance import Layer
from ..common.kl import kl_divergence
from .batches import TrainingData, load_pixel_values, repeat_mirrored
from .low_rank import LowRankUpdate, Updates
from .preconditioner import Preconditioner

OVERSAMPLING, POWER_ITERATIONS = 4, 2  # of the randomised SVD of a gradient
TOLERANCE = 1e-3  # relative to the largest singular value; smaller ones are noise


def initialize(
    model: nn.Module,
    layers: Mapping[str, list[Layer]],
    data: TrainingData,
    cohort: Sequence[int],
    preconditioner: Preconditioner,
    context: Context,
) -> Updates:
    """Return the initial V and R of a cohort. V = 0, so the updates change nothing yet.

    R are about the leading right singular vectors of the preconditioned gradient of the identity's own part of the objective.
    """
    options, kind = data.options, context.task.kind
    weights = {name: weight for name, weight in model.named_parameters() if name in layers}
    downs = {name: torch.zeros(len(cohort), options.rank, weight[0].numel(), device=context.device) for name, weight in weights.items()}
    for index in context.local_share(range(len(cohort))):
        rng = generator(context.seed, "start", cohort[index])
        positions = data.sample_photos(cohort[index], rng)
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        current = torch.cat([version.logits[positions] for version in data.train_logits])
        positions, mirrored = repeat_mirrored(positions)
        target_logits = data.target_logits(positions, current, mirrored)
        for rows in torch.arange(len(positions)).split(options.chunk):
            pixels = load_pixel_values(data.train, positions[rows], mirrored[rows], context.device)
            logits = torch.func.functional_call(model, leaves, kwargs={"pixel_values": pixels}).logits
            kl_divergence(target_logits[rows].to(context.device), logits, kind).sum().backward()
        for name, weight in leaves.items():
            g = torch.zeros_like(weight) if weight.grad is None else weight.grad
            downs[name][index] = row_space(preconditioner.up[name] @ g.flatten(1) @ preconditioner.down[name], options.rank, rng)
    return {
        name: LowRankUpdate(
            torch.zeros(len(cohort), len(weights[name]), options.rank, device=context.device), context.accelerator.reduce(down, "sum")
        )
        for name, down in downs.items()
    }


def row_space(matrix: torch.Tensor, rank: int, rng: torch.Generator) -> torch.Tensor:
    """Return orthonormal rows (rank, d), about the leading right singular vectors of a matrix (out, d).

    Computed by randomised subspace iteration (Halko, Martinsson, Tropp 2011, algorithms 4.4 and 5.1), since a full SVD of every weight for
    every identity would take longer than the training. Rows whose singular value is at the level of rounding errors are zero, as are those
    beyond d: a direction made of noise would differ between machines, and Adam would scale it up like a real one.
    """
    wide = matrix.double()
    basis = torch.randn(wide.shape[1], min(rank + OVERSAMPLING, wide.shape[1]), generator=rng, dtype=torch.float64).to(wide)
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(wide.mT @ (wide @ basis)).Q
    _, values, vectors = torch.linalg.svd(wide @ basis, full_matrices=False)
    rows = ((vectors * (values > TOLERANCE * values[0]).unsqueeze(1)) @ basis.mT)[:rank]
    return torch.nn.functional.pad(rows, (0, 0, 0, rank - len(rows))).to(matrix)
