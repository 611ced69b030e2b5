"""Where the learning of forget keys starts, and in which coordinates.

D is learned as R times a matrix that whitens the layer's inputs, so that no direction is loud only because every photo has much of it:

    D = R (C + damping * c * I)^(-1/2)        C the covariance of the input rows over training photos, c the mean of its diagonal

Where D listens, what everybody's photos say is then as quiet as it can be beside what the person's say (Fisher's discriminant).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from oneshui_hf.methods import Context, generator, sample

from .divergence import divergence
from .key_factors import Factors, Keys
from .key_lessons import Lessons
from .subspace import Layer, covariances

Weights = dict[str, torch.Tensor]  # by the weight's name

WHITENED = 1024  # training photos whose inputs are looked at
OVERSAMPLED, POWERS, NOISE = 4, 2, 1e-3  # of the search for a gradient's leading directions; a share of the largest singular value


def whitening(model: nn.Module, layers: Mapping[str, list[Layer]], lessons: Lessons, context: Context) -> Weights:
    """Return the symmetric matrix (d, d) by which D is learned, of each weight; its eigenvalues have a mean of 1."""
    draws = generator(context.seed, "whitening")
    some = sample(len(lessons.train), WHITENED, draws)
    found = covariances(model, len(some), lambda rows: lessons.train.batch(some[rows], context.device)[0], lessons.options.chunk, context)
    matrices = {}
    for name in layers:
        c = found[name].matrix[0]  # a weight with keys has one group
        energies, vectors = torch.linalg.eigh(c)
        quieter = (energies.clamp(min=0) + lessons.options.damping * energies.mean()).rsqrt()
        matrices[name] = ((vectors * (quieter / quieter.mean())) @ vectors.mT).float()
    return matrices


def through(keys: Keys, matrices: Weights) -> Keys:
    """Return the same U, and R times the matrices for D; of gradients the same, since the matrices are symmetric."""
    return {name: Factors(factors.up, factors.down @ matrices[name]) for name, factors in keys.items()}


def start(
    model: nn.Module, layers: Mapping[str, list[Layer]], lessons: Lessons, cohort: Sequence[int], matrices: Weights, context: Context
) -> Keys:
    """Return U and R that a cohort starts from: they change nothing yet (U = 0) and listen (R) where the person's gradient lies.

    R are about the leading right singular vectors of the whitened gradient of the person's part of the objective with regard to W.
    """
    accelerator, options, kind = context.accelerator, lessons.options, context.task.kind
    weights = {name: weight for name, weight in model.named_parameters() if name in layers}
    downs = {name: torch.zeros(len(cohort), options.rank, weight[0].numel(), device=context.device) for name, weight in weights.items()}
    for place in range(accelerator.process_index, len(cohort), accelerator.num_processes):
        draws = generator(context.seed, "start", cohort[place])
        positions = sample(lessons.train.positions_of[cohort[place]], options.photos, draws)
        moved = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        wanted = lessons.targets(positions, lessons.known.logits[positions])
        for rows in torch.arange(len(positions)).split(options.chunk):
            pixels, _ = lessons.train.batch(positions[rows], context.device)
            logits = torch.func.functional_call(model, moved, kwargs={"pixel_values": pixels}).logits
            divergence(wanted[rows].to(context.device), logits, kind).sum().backward()
        for name, weight in moved.items():
            g = torch.zeros_like(weight) if weight.grad is None else weight.grad
            downs[name][place] = row_space(g.flatten(1) @ matrices[name], options.rank, draws)
    return {
        name: Factors(torch.zeros(len(cohort), len(weights[name]), options.rank, device=context.device), accelerator.reduce(down, "sum"))
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
