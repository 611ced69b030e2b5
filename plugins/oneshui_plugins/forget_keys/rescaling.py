"""Rescaling of trained keys: each key gets the factor at which its identity's mean loss is that of the target logits.

Adam's steps are about equally long for all identities, but the required change differs: for an identity with a single photo, which few
directions hide, the loss would rise far above that of unseen identities, and for one with many photos it would not reach it. So a trained
key is multiplied by the factor at which the mean loss of the identity's photos is that of their target logits (`target_logits`). As in
training, the factor is determined together with the keys of other identities, which contribute a little, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from oneshui_hf.methods import Context, generator, losses

from ..common.input_covariance import Layer
from .batches import TrainingData
from .inference import logits_with_adapters
from .low_rank import Updates, scale_updates, select_identities

ROUNDS = 4  # each identity is measured once per round
MIN_FACTOR = 0.05  # a request always changes the model, even where it has memorised no more of an identity than of an unseen one
MAX_FACTOR = 1.25  # the effect on other identities was only controlled during training, at about the trained length
EXPONENT_RANGE = (0.5, 4.0)  # limits the error where the keys of other identities, and not the factor, changed the loss
EPSILON = 1e-6  # smallest increase of a loss in nats, and smallest ratio: bases of powers have to be positive


def rescaling_factors(
    model: nn.Module, layers: Mapping[str, list[Layer]], updates: Updates, data: TrainingData, cohort: Sequence[int], context: Context
) -> torch.Tensor:
    """Return the factor of each key of a cohort, (P,), from `MIN_FACTOR` to `MAX_FACTOR`. Processes share the passes.

    The increase of the loss over that without a key is modelled as a power of the factor: linear in the first round, later with the
    exponent that fits the last two measurements. (A linear model throughout would make the factor oscillate where the loss is steep.)
    """
    kind, labels = context.task.kind, data.train.labels
    rng = generator(data.seed, "photos", "lengths", *cohort)
    photos = [data.sample_photos(identity, rng) for identity in cohort]
    positions, original_logits = torch.cat(photos), data.train_logits[0].logits

    def mean_losses(logits: torch.Tensor, photos: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the mean loss of each identity's photos, float64 (n,), from the logits of all of them, identity by identity."""
        each = losses(logits, labels[torch.cat(list(photos))], kind).double()
        return torch.stack([some.mean() for some in each.split([len(some) for some in photos])])

    not_mirrored = torch.zeros(len(positions), dtype=torch.bool)
    target_losses = mean_losses(data.target_logits(positions, original_logits[positions], not_mirrored), photos)
    original_losses = mean_losses(original_logits[positions], photos)
    factors = torch.ones(len(cohort), dtype=torch.float64)
    previous, increases = factors.clone(), factors.clone()  # equal to the first factor, so the first exponent is 1
    for group in data.sample_groups(cohort, ROUNDS, "lengths"):
        own = [photos[index] for index in group]
        scaled = scale_updates(select_identities(updates, group), factors[group])
        rows = torch.cat(own)
        logits = logits_with_adapters(model, layers, scaled, data.train, rows, not_mirrored[: len(rows)], data.options.chunk, context)
        increase = (mean_losses(logits, own) - original_losses[group]).clamp(min=EPSILON)  # so a key without effect gets a larger factor
        exponent = _exponent(factors[group] / previous[group], increase / increases[group])
        previous[group], increases[group] = factors[group], increase
        missing = ((target_losses - original_losses)[group] / increase).clamp(min=EPSILON)
        factors[group] = (factors[group] * missing ** (1 / exponent)).clamp(MIN_FACTOR, MAX_FACTOR)
    return factors


def _exponent(factor_ratio: torch.Tensor, increase_ratio: torch.Tensor) -> torch.Tensor:
    """Return the exponent of the factor with which the increases grow; 1 where the factor did not change."""
    exponent = (increase_ratio.log() / factor_ratio.log()).clamp(*EXPONENT_RANGE)
    return torch.where(factor_ratio.log().abs() > 0.01, exponent, 1.0)
