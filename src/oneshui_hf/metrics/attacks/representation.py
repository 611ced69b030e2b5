"""The representation audit: does a model see the forgotten photos as the oracle does, layer by layer?

Unlearning may change the outputs alone and leave the features before them, from which the old outputs can be read again. Two
models' features of the same photos are compared without the labels: by linear CKA, the similarity of all distances between photos, and by
the share of each photo's nearest neighbours that the models have in common.

Direction: both are 1 for equal features, and higher is closer to the oracle. The original's value, next to it, is that of doing nothing:
a model that forgot as the oracle does is above it on the forget set, and no lower on test.

What it cannot show: two oracles of different seeds differ, too, so 1 is not reached, and CKA of few photos with many features is high for
any two models. A layer that differs from the oracle's does not show that knowledge remains, only that the layer is not the oracle's.

Source: Kornblith, Norouzi, Lee, Hinton, "Similarity of Neural Network Representations Revisited", ICML 2019. As an audit of unlearning:
Kim, Cha, Kim, "Are We Truly Forgetting? A Critical Re-examination of Machine Unlearning Evaluation Protocols", 2025 (2503.06991).
"""

from __future__ import annotations

import math

import torch
from torch import nn

NEIGHBOURS = 5
NO_SPREAD = 1e-12  # share of the features' length below which a spread around the mean is rounding error


def linear_cka(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the linear CKA of two models' features of the same photos, 0..1; NaN where one of them is the same for all photos.

    |X^T Y|^2 / (|X^T X| |Y^T Y|) with centred features and Frobenius norms, computed from the products of photos (n, n) in float64. It does
    not change with rotations, reflections and a common factor of the features.

    Args:
        first: Features X (n, d).
        second: Features Y (n, e); e may differ from d.
    """
    grams = []
    for features in (first.double(), second.double()):
        centred = features - features.mean(dim=0)
        if not centred.norm() > NO_SPREAD * features.norm():
            return math.nan
        grams.append(centred @ centred.T)
    return ((grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm())).item()


def neighbour_overlap(first: torch.Tensor, second: torch.Tensor, k: int = NEIGHBOURS) -> float:
    """Return the mean share of a photo's k nearest neighbours, by Euclidean distance, that two models have in common, 0..1.

    NaN with fewer than k + 2 photos, where all others are neighbours.

    Args:
        first: Features (n, d).
        second: Features (n, e).
        k: Number of neighbours.
    """
    if len(first) < k + 2:
        return math.nan
    is_neighbour = [_neighbours(features.double(), k) for features in (first, second)]
    return (is_neighbour[0] & is_neighbour[1]).sum().item() / (k * len(first))


def _neighbours(features: torch.Tensor, k: int) -> torch.Tensor:
    """Return whether a photo is one of the k nearest of another, bool (n, n). Of equally distant ones the first in order are."""
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(math.inf)
    nearest = distances.argsort(dim=1, stable=True)[:, :k]
    return torch.zeros_like(distances, dtype=torch.bool).scatter_(1, nearest, True)


def layer_features(model: nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Return the hidden states of photos, from the first to the last, each as its mean over tokens or places (n, d), float32 on the CPU.

    Empty for a model that returns no hidden states.

    Args:
        model: Any image classifier, in evaluation mode.
        pixels: Preprocessed photos (n, 3, S, S).
    """
    try:
        with torch.no_grad():
            hidden = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    except (TypeError, ValueError, AttributeError):  # some models of timm refuse to return them
        hidden = None
    return [(state.mean(dim=(2, 3)) if state.dim() == 4 else state.mean(dim=1)).float().cpu() for state in hidden or ()]
