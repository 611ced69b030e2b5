"""The target logits of forget photos while keys are trained: cross-fitted (`cross_fit`) or matched to quantiles (`target_logits`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch

from oneshui_hf.methods import generator

from .target_logits import LabelledLogits, margin, match_quantiles

if TYPE_CHECKING:
    from oneshui_hf.methods import TaskKind


RANK_STREAM = "luck"  # the first name of the random stream is kept: another one draws other numbers


class Targets(Protocol):
    """Returns the target logits of training photos whose identities are trained together."""

    def __call__(self, positions: torch.Tensor, logits: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        """Return target logits, (n, K).

        Args:
            positions: The photos, as positions in the training set, (n,).
            logits: The model's current logits for them, (n, K).
            mirrored: Which of them are mirrored, (n,) of bool.
        """


@dataclass(frozen=True)
class CrossFitTargets:
    """The logits of models that were not trained on the photo's identity; they do not depend on the current logits.

    Attributes:
        logits: Of the training photos, original and mirrored, (N, K) each.
    """

    logits: tuple[torch.Tensor, torch.Tensor]

    def __call__(self, positions: torch.Tensor, logits: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        """Return target logits; see `Targets`."""
        original, flipped = (version[positions] for version in self.logits)
        return torch.where(mirrored.unsqueeze(1), flipped, original).to(logits)


@dataclass(frozen=True)
class QuantileTargets:
    """The logits of unseen identities' photos at the same rank.

    Photos are ranked by their margin plus the weighted probe score. Original and mirrored photos are ranked separately, since the model may
    have memorised more of one version than of the other. A photo whose margin has already fallen keeps its low rank.

    Attributes:
        labels: Of the training photos, (N, K), or (N,) for classes.
        val_logits: The original model's logits for photos of unseen identities, original and mirrored.
        probe_scores: The shallow probe's scores of the training photos, original and mirrored; see `shallow_probe_scores`.
        probe_weight: Weight of these scores.
        kind: Of the task.
        seed: Of the position within the rank.
    """

    labels: torch.Tensor
    val_logits: tuple[LabelledLogits, LabelledLogits]
    probe_scores: tuple[torch.Tensor, torch.Tensor]
    probe_weight: float
    kind: TaskKind
    seed: int

    @cached_property
    def u(self) -> torch.Tensor:
        """Position of each training photo within its rank, see `match_quantiles`; (N, K), or (N,) for classes."""
        return torch.rand(self.labels.shape, generator=generator(self.seed, RANK_STREAM))

    def __call__(self, positions: torch.Tensor, logits: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        """Return target logits; see `Targets`."""
        matched = logits.clone()
        for chosen, reference, probe_scores in zip((~mirrored, mirrored), self.val_logits, self.probe_scores, strict=True):
            rows = positions[chosen]
            current = LabelledLogits(logits[chosen], self.labels[rows])
            spread = margin(reference, self.kind).std(dim=0, correction=0)  # that of the probe scores is about 1
            ranking = margin(current, self.kind) + self.probe_weight * spread * probe_scores[rows]
            matched[chosen] = match_quantiles(current, reference, ranking, self.u[rows], self.kind)
        return matched
