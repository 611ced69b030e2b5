"""Fitting: one model on one set of photos, epoch by epoch, so that it can be interrupted and goes on to the same weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from ...data.augment import augment
from ...data.face_set import FaceSet
from ...metrics.functional import score
from ...models.outputs import losses, predict
from ...reporting import Reporter
from ...seeding import generator, seeded
from ..command_options import TrainOptions
from ..distributed import half_precision, on_main
from . import checkpoint


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
    scored: Literal["each", "last"] = "each",
) -> dict[str, Any]:
    """Train `model` in place, checkpointing to `path` after each epoch; return what became of it.

    Args:
        model: The classifier; parameters that ask for no gradients stay as they are.
        faces: What it learns.
        val: Decides the best epoch, where that is to be kept.
        task: For loss and score.
        options: The recipe.
        seed: Of order and augmentation.
        path: Where checkpoints lie.
        accelerator: For several processes.
        reporter: For progress.
        scored: Which epochs are scored on val, where the last one is kept: for few photos that takes longer than learning.
    """
    step_size = options.batch_size * accelerator.num_processes
    steps = math.ceil(len(faces) / step_size)
    optimizer = _optimizer(model, options)
    progress: dict[str, Any] = {"best_epoch": None, "best_score": None, "history": []}
    best: checkpoint.Weights | None = None
    first = 0
    if options.resume and (folder := checkpoint.latest(path)):
        weights, best, state, progress = checkpoint.load(folder)
        model.load_state_dict(weights)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        first = progress.pop("epoch")
        reporter.info(f"Going on after epoch {first}.")
    wrapped, optimizer = accelerator.prepare(model, optimizer)

    for epoch in range(first, options.epochs):
        wrapped.train()
        order = torch.randperm(len(faces), generator=generator(seed, "order", epoch))
        draws = generator(seed, "augment", epoch, accelerator.process_index)
        total = torch.zeros((), device=accelerator.device)
        with seeded(seed, "dropout", epoch, accelerator.process_index):
            for step in reporter.track(range(steps), f"Epoch {epoch + 1}/{options.epochs}"):
                set_rate(optimizer, options, epoch * steps + step, steps)
                positions = order[step * step_size : (step + 1) * step_size]
                mine, share = _my_part(positions, accelerator)
                pixels = augment(faces.raw(mine).to(accelerator.device), options.augment, draws)
                with half_precision(accelerator.device, options.bf16):
                    logits = wrapped(pixel_values=faces.preprocess(pixels)).logits
                each = losses(logits.float(), faces.labels[mine].to(accelerator.device), task.kind)
                loss = each.sum() / share
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
                total += each.detach().sum()
        mean = accelerator.reduce(total, reduction="sum").item() / len(faces)
        told, said = {"epoch": epoch + 1, "train_loss": mean}, f"Epoch {epoch + 1}: loss {mean:.4f}"
        if scored == "each" or options.keep == "best" or epoch + 1 == options.epochs:
            value = score(predict(model, val, accelerator), val.labels, task)
            told[f"val_{task.score_name}"], said = value, f"{said}, val {task.score_name} {value:.1f}"
        progress["history"].append(told)
        reporter.info(said)
        if options.keep == "best" and (progress["best_score"] is None or value > progress["best_score"]):
            progress |= {"best_score": value, "best_epoch": epoch + 1}
            best = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        kept = best
        on_main(
            accelerator,
            lambda: checkpoint.save(path, epoch + 1, model.state_dict(), kept, optimizer.state_dict(), progress),  # noqa: B023
        )
    if best is not None:
        model.load_state_dict(best)
    accelerator.free_memory()  # it keeps what it prepared, and one run may train many models
    return progress | {"epochs": options.epochs}


def _optimizer(model: torch.nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if options.optimizer == "sgd":
        return torch.optim.SGD(
            learns,
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            foreach=True,
        )
    return torch.optim.AdamW(learns, lr=options.lr, weight_decay=options.weight_decay, foreach=True)


def set_rate(optimizer: torch.optim.Optimizer, options: TrainOptions, step: int, steps_per_epoch: int) -> None:
    """Set the learning rate: linear warm-up, then a cosine to zero. A function of the step alone, so resuming needs no state."""
    warmup, total = options.warmup_epochs * steps_per_epoch, options.epochs * steps_per_epoch
    if step < warmup:
        rate = options.lr * (step + 1) / (warmup + 1)
    else:
        rate = options.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = rate


def _my_part(positions: torch.Tensor, accelerator: Accelerator) -> tuple[torch.Tensor, float]:
    """Return this process's photos of a step, and by what to divide their summed loss.

    DDP averages gradients over processes, so each divides by (photos of the step / processes): the average is the mean over all
    photos, whatever their number. A last step with fewer photos than processes repeats some, and counts them.
    """
    world = accelerator.num_processes
    if len(positions) < world:
        positions = positions.repeat(math.ceil(world / len(positions)))[:world]
    return positions[accelerator.process_index :: world], len(positions) / world
