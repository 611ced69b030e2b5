"""Training of a head in closed form: sums over the training photos, and a head from them (see `models.feature_sums`).

The layers whose features are used and the constants of the head, shrinkage and temperature, are chosen on val when the original is trained.
They are then part of the recipe: an oracle is computed with those of its original, so that it is a function of its own sums alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from ...data.face_set import FaceSet
from ...data.schema import Task
from ...errors import OneshuiError
from ...metrics.functional import is_scorable, score
from ...models.closed_form import DEPTHS, ClosedFormClassifier, add_closed_form_head
from ...models.feature_sums import GRID, FeatureSums, log_prior, solve_head
from ...models.grid_features import grid_rows, set_head, sum_photos
from ...models.load import load_model
from ...models.outputs import losses, predict
from ...processes import on_main
from ...reporting import Reporter
from ...runs import Run
from ..command_options import TrainOptions

SHRINKAGES = tuple(2.0**power for power in range(-5, 7))
TEMPERATURES = tuple(2.0 ** (power / 4) for power in range(-16, 5))


def closed_form_models(backbone: PreTrainedModel, size: int, options: TrainOptions, original: Run | None) -> list[ClosedFormClassifier]:
    """Return the models to choose from, of which only the head is to be computed: one per pair of layers, or that of the original.

    Args:
        backbone: The pretrained model.
        size: Side of its photos in pixels.
        options: The recipe.
        original: For an oracle, the original model, whose architecture and constants it has.

    Raises:
        UsageError: The backbone returns no hidden states.
        OneshuiError: The original is not such a model, or the backbone has changed since it was trained.
    """
    if original is None:
        models = [add_closed_form_head(backbone, size, mirrored=options.augment != "none", depths=depths) for depths in DEPTHS]
        return list({tuple(model.config.layers): model for model in models}.values())
    model = load_model(original.path)[0]
    if not isinstance(model, ClosedFormClassifier):
        raise OneshuiError(f"{original.path} was trained with --head {options.head}, but its model has another head; restore it.")
    pretrained = backbone.state_dict()
    if any(name not in pretrained or not torch.equal(tensor, pretrained[name]) for name, tensor in model.backbone.state_dict().items()):
        raise OneshuiError(f"The checkpoint {options.model} has changed since {original.path} was trained; restore the checkpoint.")
    return [model]


def fit_closed_form(
    models: Sequence[ClosedFormClassifier],
    faces: FaceSet,
    val: FaceSet,
    task: Task,
    accelerator: Accelerator,
    reporter: Reporter,
    *,
    choose: bool,
) -> tuple[ClosedFormClassifier, dict[str, Any]]:
    """Compute a head; return the model and the report of the training.

    Args:
        models: The models to choose from.
        faces: The training set.
        val: The validation set, on which model and constants are chosen.
        task: What is predicted.
        accelerator: For several processes.
        reporter: For progress.
        choose: Whether to choose the constants; otherwise those of the only model are used.

    Raises:
        OneshuiError: There are too many photos for exact sums.
    """
    best: tuple[float, ClosedFormClassifier, FeatureSums] | None = None
    for model in models:
        model.to(accelerator.device)
        sums, value = sum_photos(model, faces, task, accelerator, reporter), math.inf
        if choose:
            rows = grid_rows(model, val, accelerator, mirrored=False, reporter=reporter)
            constants = on_main(accelerator, lambda: choose_constants(sums, rows, val.labels, task))  # noqa: B023
            value, model.config.shrinkage, model.config.temperature = constants
        if best is None or value > best[0]:
            best = value, model, sums
    assert best is not None
    _, model, sums = best
    set_head(model, sums, accelerator)
    config = model.config
    report = {"rows": sums.count, "features": config.feature_size, "shrinkage": config.shrinkage, "temperature": config.temperature}
    layers = " and ".join(map(str, config.layers))
    message = (
        f"Head in closed form: {sums.count:,} rows of {config.feature_size:,} features (layers {layers}), shrinkage {config.shrinkage:g}"
    )
    if is_scorable(val.labels, task):
        score_of_val = report[f"val_{task.score_name}"] = score(predict(model, val, accelerator), val.labels, task)
        message = f"{message}; val {task.score_name} {score_of_val:.1f}"
    reporter.info(f"{message}.")
    return model, report


def choose_constants(sums: FeatureSums, rows: torch.Tensor, labels: torch.Tensor, task: Task) -> tuple[float, float, float]:
    """Return the best score on val (the lowest loss, negative, if val has no score), its shrinkage, and the temperature of the lowest loss.

    Args:
        sums: Of the training set.
        rows: Integer features of the photos of val, (n, d).
        labels: Their labels.
        task: What is predicted.
    """
    features, prior = rows.double() / GRID, log_prior(sums, task.kind)
    by_loss = labels.double() if task.kind == "multi_label" else labels
    has_score = is_scorable(labels, task)
    best: tuple[float, float, float] | None = None
    for shrinkage in SHRINKAGES:
        weight, bias = solve_head(sums, shrinkage, 1.0, task.kind)
        logits = features @ weight.mT + bias
        evidence = logits - prior
        loss, temperature = min((float(losses(prior + factor * evidence, by_loss, task.kind).mean()), factor) for factor in TEMPERATURES)
        value = score(logits.float(), labels, task) if has_score else -loss
        if best is None or value > best[0]:
            best = value, shrinkage, temperature
    assert best is not None
    return best
