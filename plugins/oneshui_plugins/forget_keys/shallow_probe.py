"""The shallow probe: cross-fitted predictions of each training photo's labels, by a probe that was not trained on the photo's identity.

A model that memorised its training identities is confident about all their photos, so its logits hardly show which of them would be hard
for a model that was not trained on them. Its first layers have memorised less. A ridge regression on their features, trained on other
identities, predicts the labels: with X the features of a layer, standardised, Y the labels (one-hot for classes) less their mean, and the
identities split into folds f,

    W_f = (X^T X + penalty * d * I)^-1 X^T Y        over the photos of all folds but f
    score of a photo of fold f = W_f^T x            (cross-fitting)

The scores are standardised per label and averaged over the layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from oneshui_hf.methods import generator, pool_bands, targets

from .batches import load_pixel_values, repeat_mirrored
from .folds import assign_folds

if TYPE_CHECKING:
    from oneshui_hf.methods import Context, FaceSet

FOLDS = 6  # of identities
RIDGE_PENALTY = 3.0  # per feature; a standardised feature has a mean square of 1
DEPTHS = (0.25, 0.5)  # of the layers whose features are used: 0 is the input of the first block, 1 the output of the last


def shallow_probe_scores(model: nn.Module, train: FaceSet, chunk: int, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the probe's scores of the training photos and of their mirror images, each (N, K), or of the true class (N,).

    The scores are zeros if the model returns no hidden states. Processes share the passes.

    Args:
        model: The original model.
        train: The training photos.
        chunk: Photos per pass.
        context: For the task, the seed and the processes.
    """
    truth = targets(train.labels, context.task).double().repeat(2, 1)  # photos, then their mirror images
    fold = assign_folds(train, FOLDS, generator(context.seed, "parts")).repeat(2)
    scores = torch.zeros_like(truth)
    for features in shallow_features(model, train, chunk, context):
        scores += standardize(cross_fit_ridge(features, truth, fold)) / len(DEPTHS)
    if context.task.kind == "single_label":
        scores = scores.gather(1, train.labels.repeat(2).unsqueeze(1)).squeeze(1)
    original, mirrored = scores.float().chunk(2)
    return original, mirrored


def shallow_features(model: nn.Module, faces: FaceSet, chunk: int, context: Context) -> list[torch.Tensor]:
    """Return the features at each of `DEPTHS` of all photos and then of all mirror images, (2N, d) each on the CPU; see `pool_bands`."""
    positions, mirrored = repeat_mirrored(torch.arange(len(faces)))
    layers: list[torch.Tensor] = []
    passes = torch.arange(len(positions)).split(chunk)
    mine = context.local_share(passes)
    with torch.no_grad():
        for rows in context.reporter.track(mine or passes[:1], "Computing shallow features"):  # every process needs their width
            pixels = load_pixel_values(faces, positions[rows], mirrored[rows], context.device)
            try:
                hidden = getattr(model(pixel_values=pixels, output_hidden_states=True), "hidden_states", None)
            except (TypeError, ValueError):  # some models of timm refuse to return them
                return []
            if not hidden:
                return []
            chosen = [torch.cat(pool_bands(hidden[round(depth * (len(hidden) - 1))]), dim=1).float() for depth in DEPTHS]
            layers = layers or [features.new_zeros(len(positions), features.shape[1]) for features in chosen]
            for layer, features in zip(layers, chosen, strict=True):
                layer[rows] = features if mine else 0.0
    return [context.accelerator.reduce(layer, "sum").cpu() for layer in layers]


def cross_fit_ridge(features: torch.Tensor, truth: torch.Tensor, fold: torch.Tensor) -> torch.Tensor:
    """Return each photo's prediction by a ridge regression trained on all other folds, float64 (n, K).

    Args:
        features: (n, d).
        truth: The regression targets, (n, K).
        fold: Of each photo, (n,).
    """
    x = standardize(features.double())
    predicted = torch.zeros_like(truth)
    penalty = RIDGE_PENALTY * x.shape[1] * torch.eye(x.shape[1], dtype=x.dtype)
    gram = {name: x[fold == name].mT @ x[fold == name] for name in fold.unique().tolist()}
    total = sum(gram.values(), torch.zeros_like(penalty))
    for held_out, own in gram.items():
        out = fold == held_out
        labels = truth[~out]
        predicted[out] = x[out] @ torch.linalg.solve(total - own + penalty, x[~out].mT @ (labels - labels.mean(dim=0)))
    return predicted


def standardize(columns: torch.Tensor) -> torch.Tensor:
    """Return columns (n, k) with a mean of 0 and a standard deviation of 1; constant columns become 0."""
    centred = columns - columns.mean(dim=0)
    spread = centred.square().mean(dim=0).sqrt()
    return torch.where(spread > 1e-6 * columns.abs().amax(dim=0), centred / spread, 0.0)
