"""The training loop. It saves checkpoints after each epoch and on request, and an interrupted training resumes to the same weights."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from ...data.face_set import FaceSet
from ...data.prefetch import prefetch
from ...errors import NotResumableError, OneshuiError, UsageError
from ...files import remove
from ...methods.weight_space import Weights
from ...metrics.functional import is_scorable, score
from ...models.outputs import losses, predict
from ...models.weights import require_finite_tensors
from ...processes import on_main
from ...progress import TrainingProgress
from ...reporting import Reporter
from ...seeding import seeded
from ...stop_signals import StopRequest, deferred_stop
from ..command_options import TrainOptions
from ..distributed import autocast, training_dtype
from . import checkpoint
from .batches import Batches, MicroBatch
from .divided import divides_model, load_moments, whole_moments, whole_tensors
from .optimization import compile_errors, make_optimizer, photos_per_pass, recomputed_activations, set_learning_rate
from .phases import Phases, ProfiledPhases
from .random_state import gather_state, process_count, restore_state
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

    A signal that asks the process to end is answered after the running step, with a checkpoint.

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
        UsageError: `--max-memory` is too little, or the model does not support an option.
        NotResumableError: All checkpoints to continue from are damaged.
        OneshuiError: The loss or the weights are no longer finite.
        KeyboardInterrupt: A signal has asked this process to end.
    """
    if options.keep == "best" and not is_scorable(val.labels, task):
        reporter.warn("No label varies over the photos of val, so no epoch has a score there; the last epoch is kept.")
    divides = divides_model(accelerator)
    # FSDP replaces the parameters. It gets a copy, and the caller's model the whole weights at the end.
    trained = copy.deepcopy(model) if divides else model
    training = _Training(trained, faces, task, options, seed, path, accelerator, reporter)
    with recomputed_activations(trained, options):
        training.run(val, validate)
    result = training.final_weights() if divides else training.best
    if result is not None:
        model.load_state_dict(result)
    if divides:
        model.to(accelerator.device)
    accelerator.free_memory()  # it holds references to prepared models, and one process may train many
    return training.report()


class _Training:
    """One training: the model, its optimizer, and how far it is. The arguments are those of `fit`."""

    def __init__(
        self,
        model: torch.nn.Module,
        faces: FaceSet,
        task: Any,
        options: TrainOptions,
        seed: int,
        path: Path,
        accelerator: Accelerator,
        reporter: Reporter,
    ) -> None:
        self._faces, self._task, self._options, self._seed, self._path = faces, task, options, seed, path
        self._accelerator, self._reporter, self._device = accelerator, reporter, accelerator.device
        self._dtype = training_dtype(self._device, bf16=options.bf16, fp16=options.fp16)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self._dtype == torch.float16)  # otherwise it does nothing
        self._part = photos_per_pass(model, options, faces.preprocess.size, self._device, self._dtype)
        self._model, optimizer = model, make_optimizer(model, options, self._device)
        self.best: Weights | None = None
        self._progress: dict[str, Any] = {"best_epoch": None, "best_score": None, "history": []}
        self._epoch, self._step, self._within = 0, 0, Weights()  # where the training starts
        moments = self._resume(optimizer) if options.resume else None
        if accelerator.num_processes > 1 and accelerator.ddp_handler:  # the search costs time, and warns where it finds nothing
            accelerator.ddp_handler.find_unused_parameters = has_unused_parameters(model, faces.preprocess.size)
        self._wrapped, self._optimizer = accelerator.prepare(model, optimizer)
        if moments and divides_model(accelerator):  # the optimizer has other parameters now
            load_moments(self._optimizer, moments)
        self._forward = torch.compile(self._wrapped) if options.compile else self._wrapped
        step_size = options.batch_size * (options.gradient_accumulation_steps or 1)
        self._step_size, self._steps = step_size * accelerator.num_processes, math.ceil(len(faces) / step_size / accelerator.num_processes)
        left = (options.epochs - self._epoch) * self._steps - self._step
        profiles = options.profile and accelerator.is_main_process and left > 0
        self._phases = ProfiledPhases(path, self._device, left) if profiles else Phases()
        place = accelerator.num_processes, accelerator.process_index
        self._batches = Batches(faces, options.augment, seed, step_size, self._part, *place, self._device, self._phases)

    def report(self) -> dict[str, Any]:
        """Return the history, and what decided about the weights besides the recipe."""
        own: dict[str, Any] = {"epochs": self._options.epochs}
        if self._dtype != torch.float32:
            own["precision"] = str(self._dtype).removeprefix("torch.")
        if self._part < self._options.batch_size:
            own["photos_per_pass"] = self._part
        return self._progress | own

    def final_weights(self) -> Weights:
        """Return the whole weights that the training keeps, on all processes."""
        return self.best if self.best is not None else whole_tensors(self._model.state_dict())

    def run(self, val: FaceSet, validate: str) -> None:
        """Train all epochs that are left."""
        done = self._epoch * self._steps + self._step
        with deferred_stop(self._accelerator) as stop, self._reporter.training(self._options.epochs, self._steps, done) as progress:
            for epoch in range(self._epoch, self._options.epochs):
                total = self._train_epoch(epoch, stop, progress)
                mean = self._accelerator.reduce(total, reduction="sum").item() / len(self._faces)
                weights = self._require_finite(mean, epoch)
                entry = {"epoch": epoch + 1, "train_loss": mean} | self._validate(epoch, val, validate, weights)
                self._progress["history"].append(entry)
                progress.epoch(entry)
                self._save(epoch + 1, weights)
                if stop.requested():
                    stop.end()
        if table := self._phases.finish():
            self._reporter.note(table)

    def _train_epoch(self, epoch: int, stop: StopRequest, progress: TrainingProgress) -> torch.Tensor:
        """Train an epoch, or what is left of it; return the sum of the losses of this process's photos."""
        first, self._step = self._step, 0
        self._wrapped.train()
        total = torch.zeros((), device=self._device)
        stream = prefetch(self._batches.of_epoch(epoch, first))
        with seeded(self._seed, "dropout", epoch, self._accelerator.process_index), contextlib.closing(stream):
            if first:
                total = restore_state(self._within, self._accelerator)
            for step in range(first, self._steps):
                number = epoch * self._steps + step
                set_learning_rate(self._optimizer, self._options, number, self._steps)
                total += self._train_step(stream)
                seen = min(self._step_size * (step + 1), len(self._faces))
                progress.step(seen - self._step_size * step, lambda: total.item() * self._accelerator.num_processes / seen)  # noqa: B023
                self._phases.step_ended()
                stopping = stop.requested()
                if stopping or self._saves_after(number + 1):
                    self._save_within(epoch, step + 1, total)
                if stopping:
                    stop.end()
        return total

    def _train_step(self, stream: Iterator[MicroBatch]) -> torch.Tensor:
        """Update the weights once; return the sum of the losses of this process's photos."""
        self._optimizer.zero_grad()
        total = torch.zeros((), device=self._device)
        ends_step = False
        while not ends_step:
            with self._phases.measure("waiting"):
                batch = next(stream)
            ends_step = batch.ends_step
            with contextlib.nullcontext() if ends_step else self._accelerator.no_sync(self._wrapped):
                total += self._train_part(batch)
        with self._phases.measure("update"):
            self._scaler.step(self._optimizer)
            self._scaler.update()
        return total

    def _train_part(self, batch: MicroBatch) -> torch.Tensor:
        """Add the gradients of a part of a step; return the sum of its losses."""
        with self._phases.measure("copying"):
            pixels, labels = self._batches.to_device(batch)
        if len(labels) == 1:
            use_running_statistics(self._wrapped)
        with self._phases.measure("forward"):
            with autocast(self._device, self._dtype), compile_errors():
                logits = self._forward(pixel_values=pixels).logits
            photo_losses = losses(logits.float(), labels, self._task.kind)
            loss = photo_losses.sum() / batch.divisor
        with self._phases.measure("backward"), compile_errors():
            self._scaler.scale(loss if batch.counts else 0 * loss).backward()
        if len(labels) == 1:
            self._wrapped.train()
        return photo_losses.detach().sum() * batch.counts

    def _validate(self, epoch: int, val: FaceSet, validate: str, weights: Weights) -> dict[str, float]:
        """Return the score on val, if the epoch has one, and keep the weights of the best epoch."""
        keeps_best = self._options.keep == "best"
        if not is_scorable(val.labels, self._task) or (validate == "last" and not keeps_best and epoch + 1 < self._options.epochs):
            return {}
        value = score(predict(self._model, val, self._accelerator), val.labels, self._task)
        if keeps_best and _is_better(value, self._progress["best_score"]):
            self._progress |= {"best_score": value, "best_epoch": epoch + 1}
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
        return {f"val_{self._task.score_name}": value}

    def _require_finite(self, mean: float, epoch: int) -> Weights:
        """Return the whole weights.

        Raises:
            OneshuiError: One, or the loss, is NaN or infinite.
        """
        weights = whole_tensors(self._model.state_dict())
        on_main(self._accelerator, lambda: _require_finite(mean, weights, epoch + 1, self._options))
        return weights

    def _resume(self, optimizer: torch.optim.Optimizer) -> dict[int, dict[str, torch.Tensor]] | None:
        """Continue from the newest checkpoint that is intact, and remove newer ones; return the optimizer's state, None without any.

        Raises:
            NotResumableError: All checkpoints are damaged.
            UsageError: It is one within an epoch, of another number of processes.
        """
        folders = on_main(self._accelerator, lambda: checkpoint.newest_first(self._path))
        damaged: list[NotResumableError] = []
        for folder in folders:
            try:
                with checkpoint.reading(folder):
                    state = self._load(folder, optimizer)
                break
            except NotResumableError as error:
                damaged.append(error)
        else:
            if damaged:
                raise damaged[0]
            return None
        processes = self._accelerator.num_processes
        if state.within and process_count(state.within) != processes:
            raise UsageError(
                f"{folder} was written within an epoch by {process_count(state.within)} process(es), not by {processes}; launch as many to "
                "continue, or start again with --overwrite."
            )
        self._accelerator.wait_for_everyone()
        for other in folders[: len(damaged)]:
            self._reporter.warn(f"{other} is damaged; the training continues from {folder.name}.")
            on_main(self._accelerator, lambda: remove(other))  # noqa: B023
        steps = f" and {self._step} steps" if self._step else ""
        self._reporter.info(f"Resuming after epoch {self._epoch}{steps}.")
        return state.optimizer

    def _load(self, folder: Path, optimizer: torch.optim.Optimizer) -> checkpoint.State:
        """Read a checkpoint into the model and its optimizer, before they are prepared."""
        state = checkpoint.load(folder)
        self._model.load_state_dict(state.model)
        load_moments(optimizer, state.optimizer)
        progress = dict(state.progress)
        self._epoch, self._step = progress.pop("epoch"), progress.pop("step", 0)
        scale = progress.pop("loss_scale", None)
        if scale and self._scaler.is_enabled():
            self._scaler.load_state_dict(scale)
        self.best, self._progress, self._within = state.best, progress, state.within
        return state

    def _saves_after(self, steps: int) -> bool:
        """Whether to save the state within an epoch, after a number of steps of the training."""
        every = self._options.save_steps
        return every is not None and steps % every == 0 and steps % self._steps > 0

    def _save_within(self, epoch: int, step: int, total: torch.Tensor) -> None:
        """Save the state after some steps of an epoch."""
        weights = self._require_finite(self._accelerator.reduce(total, reduction="sum").item(), epoch)
        self._save(epoch, weights, step=step, within=gather_state(total, self._accelerator))

    def _save(self, epoch: int, weights: Weights, **within: Any) -> None:
        """Save the state after some epochs, and some steps of the next one."""
        moments = whole_moments(self._optimizer)
        scale = {"loss_scale": self._scaler.state_dict()} if self._scaler.is_enabled() else {}
        state = weights, self.best, moments, self._progress | scale
        on_main(self._accelerator, lambda: checkpoint.save(self._path, epoch, *state, **within))


def _require_finite(loss: float, weights: Weights, epoch: int, options: TrainOptions) -> None:
    """Check an epoch's loss and the weights after it.

    Raises:
        OneshuiError: One is NaN or infinite.
    """
    advice = f"train again with a smaller --lr than {options.lr:g}"
    if not math.isfinite(loss):
        raise OneshuiError(f"The loss of epoch {epoch} is {loss}, so training has stopped; {advice}.")
    require_finite_tensors(f"epoch {epoch}", weights, advice)


def _is_better(value: float, best: float | None) -> bool:
    """Return whether a score is higher than the best one so far; any score is better than none, or than NaN of diverged weights."""
    return best is None or math.isnan(best) or value > best
