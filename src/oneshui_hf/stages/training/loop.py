"""The training loop. It saves a checkpoint after each epoch, and an interrupted training resumes to the same weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from ...data.augment import augment
from ...data.face_set import FaceSet
from ...errors import OneshuiError
from ...methods.weight_space import Weights
from ...metrics.functional import is_scorable, score
from ...models.outputs import losses, predict
from ...models.weights import require_finite
from ...processes import on_main
from ...reporting import Reporter
from ...seeding import generator, seeded
from ..command_options import TrainOptions
from ..distributed import autocast, training_dtype
from . import checkpoint
from .steps import has_unused_parameters, use_running_statistics


def fit(
    model: torch.nn.Module,
    faces: FaceSet,
    val: FaceSet,
    task: Any,
    options: TrainOptions,
    seed: int,
    path: Path,
    accelerator: Accelerator,
    reporter: Reporter,
    *,
    validate: Literal["each", "last"] = "each",
) -> dict[str, Any]:
    """Train `model` in place, with a checkpoint in `path` after each epoch whose loss and weights are finite; return the training history.

    Args:
        model: The classifier; parameters without `requires_grad` are not updated.
        faces: The training set.
        val: The validation set; decides the best epoch if `options.keep` is "best". If it has no score, the last epoch is kept.
        task: Decides loss and score.
        options: The recipe.
        seed: Seed of order and augmentation.
        path: Folder of the checkpoints.
        accelerator: For several processes.
        reporter: For progress.
        validate: Epochs that are scored on val if the last epoch is kept. With few photos, scoring takes longer than training.

    Raises:
        NotResumableError: The checkpoint to continue from is damaged.
        OneshuiError: The loss or the weights are no longer finite.
    """
    step_size = options.batch_size * accelerator.num_processes
    steps = math.ceil(len(faces) / step_size)
    optimizer = _optimizer(model, options)
    dtype = training_dtype(accelerator.device, bf16=options.bf16, fp16=options.fp16)
    scaler = torch.amp.GradScaler(accelerator.device.type, enabled=dtype == torch.float16)  # otherwise it does nothing
    progress: dict[str, Any] = {"best_epoch": None, "best_score": None, "history": []}
    best: Weights | None = None
    has_score = is_scorable(val.labels, task)
    if options.keep == "best" and not has_score:
        reporter.warn("No label varies over the photos of val, so no epoch has a score there; the last epoch is kept.")
    first = 0
    if options.resume and (folder := checkpoint.latest(path)):
        with checkpoint.reading(folder):
            weights, best, state, progress = checkpoint.load(folder)
            model.load_state_dict(weights)
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
            first = progress.pop("epoch")
            scale = progress.pop("loss_scale", None)
            if scale and scaler.is_enabled():
                scaler.load_state_dict(scale)
        reporter.info(f"Resuming after epoch {first}.")
    if accelerator.num_processes > 1 and accelerator.ddp_handler:  # the search costs time, and warns where it finds nothing
        accelerator.ddp_handler.find_unused_parameters = has_unused_parameters(model, faces.preprocess.size)
    wrapped, optimizer = accelerator.prepare(model, optimizer)

    for epoch in range(first, options.epochs):
        wrapped.train()
        order = torch.randperm(len(faces), generator=generator(seed, "order", epoch))
        draws = generator(seed, "augment", epoch, accelerator.process_index)
        total = torch.zeros((), device=accelerator.device)
        with seeded(seed, "dropout", epoch, accelerator.process_index):
            for step in reporter.track(range(steps), f"Epoch {epoch + 1}/{options.epochs}"):
                set_learning_rate(optimizer, options, epoch * steps + step, steps)
                positions = order[step * step_size : (step + 1) * step_size]
                local, divisor = _local_batch(positions, accelerator)
                pixels = augment(faces.raw_pixels(local).to(accelerator.device), options.augment, draws)
                if len(local) == 1:
                    use_running_statistics(wrapped)
                with autocast(accelerator.device, dtype):
                    logits = wrapped(pixel_values=faces.preprocess(pixels)).logits
                photo_losses = losses(logits.float(), faces.labels[local].to(accelerator.device), task.kind)
                loss = photo_losses.sum() / divisor
                optimizer.zero_grad()
                accelerator.backward(scaler.scale(loss))
                scaler.step(optimizer)
                scaler.update()
                total += photo_losses.detach().sum()
        mean = accelerator.reduce(total, reduction="sum").item() / len(faces)
        on_main(accelerator, lambda: _require_finite(mean, model, epoch + 1, options))  # noqa: B023
        entry, message = {"epoch": epoch + 1, "train_loss": mean}, f"Epoch {epoch + 1}: loss {mean:.4f}"
        if has_score and (validate == "each" or options.keep == "best" or epoch + 1 == options.epochs):
            value = score(predict(model, val, accelerator), val.labels, task)
            entry[f"val_{task.score_name}"], message = value, f"{message}, val {task.score_name} {value:.1f}"
        progress["history"].append(entry)
        reporter.info(message)
        if options.keep == "best" and has_score and _is_better(value, progress["best_score"]):
            progress |= {"best_score": value, "best_epoch": epoch + 1}
            best = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        best_so_far, so_far = best, progress | ({"loss_scale": scaler.state_dict()} if scaler.is_enabled() else {})
        on_main(
            accelerator,
            lambda: checkpoint.save(path, epoch + 1, model.state_dict(), best_so_far, optimizer.state_dict(), so_far),  # noqa: B023
        )
    if best is not None:
        model.load_state_dict(best)
    accelerator.free_memory()  # it holds references to prepared models, and one process may train many
    return progress | {"epochs": options.epochs}


def _require_finite(loss: float, model: torch.nn.Module, epoch: int, options: TrainOptions) -> None:
    """Check an epoch's loss and the weights after it.

    Raises:
        OneshuiError: One is NaN or infinite.
    """
    advice = f"train again with a smaller --lr than {options.lr:g}"
    if not math.isfinite(loss):
        raise OneshuiError(f"The loss of epoch {epoch} is {loss}, so training has stopped; {advice}.")
    require_finite(f"epoch {epoch}", model, advice)


def _is_better(value: float, best: float | None) -> bool:
    """Return whether a score is higher than the best one so far; any score is better than none, or than NaN of diverged weights."""
    return best is None or math.isnan(best) or value > best


def _optimizer(model: torch.nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if options.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            foreach=True,
        )
    return torch.optim.AdamW(parameters, lr=options.lr, weight_decay=options.weight_decay, foreach=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, options: TrainOptions, step: int, steps_per_epoch: int) -> None:
    """Set the learning rate: linear warm-up, then cosine decay to zero. It depends on the step only, so resuming needs no state."""
    warmup, total = options.warmup_epochs * steps_per_epoch, options.epochs * steps_per_epoch
    if step < warmup:
        rate = options.lr * (step + 1) / (warmup + 1)
    else:
        rate = options.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = rate


def _local_batch(positions: torch.Tensor, accelerator: Accelerator) -> tuple[torch.Tensor, float]:
    """Return this process's photos of a step, and the divisor of their summed loss.

    DDP averages gradients over processes. Each process divides by (photos of the step / processes), so the result is the mean over all
    photos of the step. A last step with fewer photos than processes repeats photos, and counts the repeated ones.
    """
    processes = accelerator.num_processes
    if len(positions) < processes:
        positions = positions.repeat(math.ceil(processes / len(positions)))[:processes]
    return positions[accelerator.process_index :: processes], len(positions) / processes
