"""Cross-fitted target logits: those of models that were trained by the run's recipe without the photo's identity.

The identities are split into K folds. The model of fold k is trained on all identities but those of fold k, so its logits for the photos of
fold k are those of a model that never met these people: both their distribution and which photo gets which logits. (Cross-fitting:
Chernozhukov et al., "Double/debiased machine learning", 2018.)

What differs from an oracle is noise and bias of the single fold model, which a key can neither learn nor should:

- *Bias.* Each fold model has its own scale and offset of every label. On val, which neither model was trained on, the original's logits are
  regressed on those of the fold model, label by label. The targets are the regression's predictions: the logits that the original is
  expected to have for a photo of an unseen identity.
- *Noise.* Training in another order gives other logits. R repetitions, with other folds and orders, are averaged.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch

from oneshui_hf.methods import UsageError, derive, generator, predict

from .folds import assign_folds

if TYPE_CHECKING:
    from oneshui_hf.methods import Context, FaceSet, TaskKind

    from .options import ForgetKeysOptions


class FoldPredictions(NamedTuple):
    """The logits of the model of one fold.

    Attributes:
        positions: The training photos of the fold, on which the model was not trained, (m,).
        logits: Of these photos and of their mirror images, (2, m, K).
        val_logits: Of the photos of val and of their mirror images, (2, v, K).
    """

    positions: torch.Tensor
    logits: torch.Tensor
    val_logits: torch.Tensor


def cross_fitted_logits(
    train: FaceSet, val: FaceSet, val_logits: torch.Tensor, options: ForgetKeysOptions, context: Context
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross-fitted logits of the training photos and of their mirror images, (N, K) each.

    Args:
        train: The training photos.
        val: Photos of unseen identities.
        val_logits: The original model's logits for these and for their mirror images, (2, v, K).
        options: For the number of folds and repetitions.
        context: Trains the models, on all processes.

    Raises:
        UsageError: There are fewer identities than folds, or this context cannot train models.
    """
    kind, totals = context.task.kind, torch.zeros(2, len(train), len(context.task.label_names), dtype=torch.float64)
    for fold in predict_folds(train, val, options, context):
        slope, intercept = regress(_comparable(fold.val_logits, kind).flatten(0, 1), _comparable(val_logits, kind).flatten(0, 1))
        totals[:, fold.positions] += slope * _comparable(fold.logits, kind) + intercept
    original, mirrored = (totals / options.repeats).float()
    return original, mirrored


def predict_folds(train: FaceSet, val: FaceSet, options: ForgetKeysOptions, context: Context) -> Iterator[FoldPredictions]:
    """Yield the predictions of each fold's model, for every repetition; see `cross_fitted_logits`."""
    if context.retrain is None:
        raise UsageError(
            "Cross-fitted targets need models trained by the run's recipe, which cannot be trained here; use --targets quantile."
        )
    require_folds(train, options)
    folds = [assign_folds(train, options.folds, generator(context.seed, "folds", repeat)) for repeat in range(options.repeats)]
    models = list(itertools.product(range(options.repeats), range(options.folds)))
    for repeat, k in context.reporter.track(models, "Training the fold models"):
        positions = (folds[repeat] == k).nonzero().squeeze(1)
        held_out = train.subset(positions)
        model = context.retrain(sorted(held_out.positions_of), derive(context.seed, "fold", repeat, k))
        logits, val_logits = (
            torch.stack([predict(model, faces, context.accelerator, view=view) for view in (0, 1)]) for faces in (held_out, val)
        )
        yield FoldPredictions(positions, logits, val_logits)


def regress(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return slope and intercept of the least-squares line of each column of y (n, K) on that of x, float64 (K,); 0 for a constant x."""
    x, y = x.double(), y.double()
    centred = x - x.mean(dim=0)
    variance = centred.square().sum(dim=0)
    covariance = (centred * (y - y.mean(dim=0))).sum(dim=0)
    slope = torch.where(variance > 0, covariance / variance.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return slope, y.mean(dim=0) - slope * x.mean(dim=0)


def _comparable(logits: torch.Tensor, kind: TaskKind) -> torch.Tensor:
    """Return logits that two models can be compared by: of classes without their common offset, which has no meaning; float64."""
    return logits.double().log_softmax(dim=-1) if kind == "single_label" else logits.double()


def require_folds(train: FaceSet, options: ForgetKeysOptions) -> None:
    """Check that every fold has an identity.

    Raises:
        UsageError: One has none.
    """
    if len(train.positions_of) < options.folds:
        raise UsageError(f"--folds {options.folds} needs as many training identities, and there are {len(train.positions_of)}; use fewer.")
