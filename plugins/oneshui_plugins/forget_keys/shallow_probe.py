"""What can be guessed of each training photo without having met its person.

A model that knows its people by heart is sure of everything about their photos, so its own answers hardly tell which of them would be hard
for a model that never saw them. Its first layers have learned less by heart. A guess is made from them by a ridge regression that is
learned from other people: with X the features of a layer, standardised, Y the labels (of classes: whether it is this one) less their mean,
and the people dealt into parts f,

    W_f = (X^T X + penalty * d * I)^-1 X^T Y        over the photos of all parts but f
    guess of a photo of part f = W_f^T x            (cross-fitting)

each label's guesses with a spread of 1, and the mean over the layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from oneshui_hf.methods import generator, targets

from .batches import both_ways, shown

if TYPE_CHECKING:
    from oneshui_hf.methods import Context, FaceSet

PARTS = 6  # that people are dealt into
PENALTY = 3.0  # a feature; a standardised feature has an energy of 1 a photo
DEPTHS = (0.25, 0.5)  # of the layers that are looked at: 0 is what the first block is given, 1 what the last one says
BANDS = 4  # that a photo is cut into, from top to bottom: of portraits about hair, eyes, mouth and chin; the same for mirror images


def guesses(model: nn.Module, train: FaceSet, chunk: int, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the guesses for the training photos as they are, and for their mirror images, each (N, K), of classes (N,) the true one's.

    They are zeros where a model shows no hidden layers. Processes share the passes.

    Args:
        model: The original model.
        train: The training photos.
        chunk: Photos a pass.
        context: For the task, the seed and the processes.
    """
    truth = targets(train.labels, context.task).double().repeat(2, 1)  # photos as they are, then mirrored
    part = dealt(train, context.seed).repeat(2)
    told = torch.zeros_like(truth)
    for features in first_layers(model, train, chunk, context):
        told += spread_out(cross_fitted(features, truth, part)) / len(DEPTHS)
    if context.task.kind == "single_label":
        told = told.gather(1, train.labels.repeat(2).unsqueeze(1)).squeeze(1)
    as_they_are, mirrored = told.float().chunk(2)
    return as_they_are, mirrored


def dealt(train: FaceSet, seed: int) -> torch.Tensor:
    """Return which part each photo belongs to, (N,): all of a person to the same one, and about as many people to each."""
    people = sorted(train.positions_of)
    order = torch.randperm(len(people), generator=generator(seed, "parts")).tolist()
    part = {people[person]: place % PARTS for place, person in enumerate(order)}
    return torch.tensor([part[person] for person in train.identities.tolist()])


def first_layers(model: nn.Module, faces: FaceSet, chunk: int, context: Context) -> list[torch.Tensor]:
    """Return what the first layers say of all photos as they are, and then of all mirrored, (2N, d) each on the CPU.

    They are gathered to one vector a photo, see `gathered`.
    """
    positions, mirrored = both_ways(torch.arange(len(faces)))
    layers: list[torch.Tensor] = []
    passes = torch.arange(len(positions)).split(chunk)
    mine = context.mine(passes)
    with torch.no_grad():
        for rows in context.reporter.track(mine or passes[:1], "Reading the first layers"):  # each has to know how wide they are
            pixels = shown(faces, positions[rows], mirrored[rows], context.device)
            said = getattr(model(pixel_values=pixels, output_hidden_states=True), "hidden_states", None)
            if not said:
                return []
            chosen = [gathered(said[round(depth * (len(said) - 1))]) for depth in DEPTHS]
            layers = layers or [features.new_zeros(len(positions), features.shape[1]) for features in chosen]
            for layer, features in zip(layers, chosen, strict=True):
                layer[rows] = features if mine else 0.0
    return [context.accelerator.reduce(layer, "sum").cpu() for layer in layers]


def gathered(said: torch.Tensor) -> torch.Tensor:
    """Return one vector a photo of what a layer says of it: its mean over each of some bands of places, from top to bottom, side by side.

    Args:
        said: Tokens (n, t, d), row by row, after a first one that models gather in, which is put before the bands; or maps (n, d, h, w).
    """
    if said.dim() == 4:
        first, places = [], said.flatten(2).mT
    else:
        first, places = [said[:, 0]], said[:, 1:]
    bands = places.tensor_split(min(BANDS, places.shape[1]), dim=1)
    return torch.cat([*first, *(band.mean(dim=1) for band in bands)], dim=1).float()


def cross_fitted(features: torch.Tensor, truth: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Return what ridge regressions that are learned from all other parts say of each photo, float64 (n, K).

    Args:
        features: (n, d).
        truth: What they are to say, (n, K).
        part: Of each photo, (n,).
    """
    x = spread_out(features.double())
    told = torch.zeros_like(truth)
    penalty = PENALTY * x.shape[1] * torch.eye(x.shape[1], dtype=x.dtype)
    each = {name: x[part == name].mT @ x[part == name] for name in part.unique().tolist()}
    energy = sum(each.values(), torch.zeros_like(penalty))
    for left_out, own in each.items():
        out = part == left_out
        labels = truth[~out]
        told[out] = x[out] @ torch.linalg.solve(energy - own + penalty, x[~out].mT @ (labels - labels.mean(dim=0)))
    return told


def spread_out(columns: torch.Tensor) -> torch.Tensor:
    """Return columns (n, k) with a mean of 0 and a spread of 1; those that are the same everywhere are 0."""
    centred = columns - columns.mean(dim=0)
    spread = centred.square().mean(dim=0).sqrt()
    return torch.where(spread > 1e-6 * columns.abs().amax(dim=0), centred / spread, 0.0)
