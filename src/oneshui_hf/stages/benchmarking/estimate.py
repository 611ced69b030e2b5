"""The estimated time and memory of a benchmark: `oneshui benchmark GRID --dry-run`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from ...data.face_set import FaceSet, face_sets
from ...data.load import load_faces
from ...data.preprocess import Preprocess
from ...data.schema import Faces, Task
from ...errors import OneshuiError
from ...methods.base import Context, DataAccess
from ...models.closed_form import add_closed_form_head
from ...models.new import new_model
from ...reporting import SILENT, Reporter
from ...sets import ATTACKED, PREDICTED
from ..command_options import BenchmarkOptions
from ..distributed import make_accelerator
from ..evaluation.model_cache import ModelCache
from ..timing import time_per_photo
from ..train import backbone_name, recipe_split
from ..training.recipe import CLOSED_FORM, seconds_per_photo
from .grid import Cell, Grid, read_grid
from .jobs import Job, cell_jobs, read_row
from .setup import jobs_of_shard, open_model_cache, resolve_output_dir, with_data_dirs


@dataclass(frozen=True)
class StepTiming:
    """Measured times on this machine.

    Attributes:
        model: The model that was timed.
        preprocess: Its preprocessing.
        forward: Seconds per photo of a forward pass.
        backward: Seconds per photo of a training step.
        peak_mb: Peak memory of a training step in MB; None if unknown.
    """

    model: Any
    preprocess: Preprocess
    forward: float
    backward: float
    peak_mb: int | None


@dataclass(frozen=True)
class Estimate:
    """Seconds of work; a lower bound if `at_least`, because some of the work could not be timed."""

    seconds: float = 0.0
    at_least: bool = False

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.seconds + other.seconds, self.at_least or other.at_least)


def estimate_benchmark(options: BenchmarkOptions, accelerator: Accelerator | None = None, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Return the plan of a grid: its jobs, which of them are done, cached models, and estimated time and memory on this machine.

    A training step is timed on random pixels, once per data set. The time of a method is the mean of its existing rows on the same data
    set; without any, it is derived from the method's own cost of preparation, and the time at the request is not counted. Nothing is
    written.

    Raises:
        UsageError: The grid or an option is invalid.
    """
    grid = with_data_dirs(read_grid(options.grid), options.data_dir)
    output = resolve_output_dir(options, grid)
    jobs_of_shard([], options.shard)
    model_cache = open_model_cache(options, grid, output, accelerator or make_accelerator(), reporter)
    notes: list[str] = []
    problems: list[str] = []
    plan: dict[Cell, list[Job]] = {}
    for cell in grid.cells:
        try:
            plan[cell] = cell_jobs(grid, cell, model_cache)
        except OneshuiError as error:
            problems.append(f"{cell.dataset} cannot be planned: {error}")
    all_jobs = [job for jobs in plan.values() for job in jobs]
    rows = {job.key: row for job in all_jobs if (row := read_row(output, job))}
    selected = {job.key for job in jobs_of_shard(all_jobs, options.shard)}
    finished = {key for key, row in rows.items() if not (options.retry and row["state"] == "failed")}
    time_step = functools.cache(functools.partial(_time_step, model_cache.accelerator))
    estimator = TimeEstimator(grid, model_cache, list(rows.values()), time_step)
    cells, total = [], Estimate(at_least=bool(problems))
    for cell, jobs in plan.items():
        jobs_here = [job for job in jobs if job.key in selected]
        remaining = [job for job in jobs_here if job.key not in finished]
        cached = _count_cached_models(grid, jobs[0], model_cache)
        missing = 2 + grid.evaluate.references - cached if remaining else 0
        counts = {"jobs": len(jobs_here), "done": len(jobs_here) - len(remaining), "models_cached": cached, "models_to_train": missing}
        try:
            time_left, peak = estimator.cell_estimate(cell, missing, remaining) if remaining else (Estimate(), None)
        except OneshuiError as error:  # for example, the backbone is missing
            problems.append(f"{cell.dataset} cannot be timed: {error}")
            time_left, peak = Estimate(at_least=True), None
        about = {"dataset": cell.dataset, "forget": cell.forget, "seed": cell.seed}
        cells.append(about | counts | {**dataclasses.asdict(time_left), "peak_mb": peak})
        total += time_left
    if total.at_least and not problems:
        notes.append("Not counted: the time at the request of methods that have not run on the data set yet.")
    head = {"name": grid.name, "output": str(output), "jobs": len(selected), "done": len(selected & finished)}
    return head | {"plan": cells, "notes": notes, "problems": list(dict.fromkeys(problems)), **dataclasses.asdict(total)}


@dataclass(frozen=True)
class TimeEstimator:
    """Estimates the time of the cells of a grid.

    Attributes:
        grid: The grid.
        model_cache: For its accelerator and reporter.
        rows: The existing rows.
        time_step: Times a training step, given backbone and its revision, image size, batch size, task, and head with whether photos are
            mirrored.
    """

    grid: Grid
    model_cache: ModelCache
    rows: list[dict[str, Any]]
    time_step: Callable[[tuple[str, str | None], int | None, int, Task, tuple[str, bool]], StepTiming]

    def cell_estimate(self, cell: Cell, models: int, jobs: list[Job]) -> tuple[Estimate, int | None]:
        """Return the time to train `models` models and to run jobs, and the peak memory of training in MB."""
        recipe = cell.train
        faces = load_faces(**recipe.source(), reporter=self.model_cache.reporter)
        kind = (recipe.head, recipe.augment != "none")
        timing = self.time_step(
            (backbone_name(recipe, faces), recipe.model_revision), recipe.image_size, recipe.batch_size, faces.task, kind
        )
        # An estimate needs the sizes of the sets, not their photos.
        sets = face_sets(faces, _BlankPixels(timing.preprocess.size), recipe_split(recipe, faces).split, timing.preprocess)
        scorings = 1 if recipe.head == CLOSED_FORM else recipe.epochs
        training = len(sets["train"]) * seconds_per_photo(recipe, timing.forward, timing.backward)
        training += scorings * len(sets["val"]) * timing.forward
        total = Estimate(models * training)
        for job in jobs:
            total += self._job_estimate(job, sets, faces, timing)
        return total, timing.peak_mb

    def _job_estimate(self, job: Job, sets: dict[str, FaceSet], faces: Faces, timing: StepTiming) -> Estimate:
        """Return the time of a job without training: unlearning, of the model and of each reference model, and evaluation."""
        evaluation = self.grid.evaluate
        models = 1 + evaluation.references
        unlearned = 1 if job.method and job.method.per_identity else models  # a per-identity method does not change a reference model
        photos = sum(len(sets[name]) for name in PREDICTED) + (evaluation.queries - 1) * sum(len(sets[name]) for name in ATTACKED)
        evaluating = Estimate(models * photos * timing.forward)
        if job.entry is None or job.method is None:
            return evaluating
        same_job = (job.label, job.cell.dataset)
        costs = [row["cost"] for row in self.rows if row["state"] == "done" and (row["method"], row["dataset"]) == same_job]
        if costs:
            return evaluating + Estimate(unlearned * fmean((cost["prepare_s"] or 0) + cost["apply_s"] for cost in costs))
        if job.method.prepares == "never":
            return evaluating + Estimate(at_least=True)
        resolved = job.method.prepare_options(job.entry.method, {}, job.values)
        context = Context(faces.task, job.cell.seed, self.model_cache.accelerator, request_size=job.cell.forget)
        cost = job.method().cost(timing.model, DataAccess(sets, job.method.needs.prepare), resolved, context)
        training = seconds_per_photo(job.cell.train, timing.forward, timing.backward)
        seconds = cost.seconds(timing.forward, timing.backward, training)
        return evaluating + Estimate(unlearned * seconds, at_least=True)


class _BlankPixels:
    """Black photos of the right shape."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        return np.zeros((len(rows), 3, self.size, self.size), dtype=np.uint8)


def _count_cached_models(grid: Grid, job: Job, model_cache: ModelCache) -> int:
    """Return how many of a cell's trained models are in the cache: original, oracle, oracles of other seeds."""
    original = model_cache.lookup("original", job.original_key)
    if original is None:
        return 0
    seeds = [original.record.seed + number for number in range(grid.evaluate.references + 1)]
    return 1 + sum(model_cache.lookup("oracle", model_cache.oracle_key(original, seed)) is not None for seed in seeds)


def _time_step(
    accelerator: Accelerator, backbone: tuple[str, str | None], image_size: int | None, batch_size: int, task: Task, kind: tuple[str, bool]
) -> StepTiming:
    """Time a training step of a new model, from a backbone with its revision, on random pixels."""
    model, preprocess = new_model(backbone[0], task, image_size, 0, backbone[1])
    head, mirrored = kind
    if head == CLOSED_FORM:
        model = add_closed_form_head(model, preprocess.size, mirrored=mirrored)
    model.to(accelerator.device)
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (batch_size, 3, preprocess.size, preprocess.size), dtype=torch.uint8, generator=draws)
    batch = preprocess(pixels.to(accelerator.device))
    labels = torch.zeros(batch_size, len(task.label_names)) if task.kind == "multi_label" else torch.zeros(batch_size, dtype=torch.long)
    photo = time_per_photo(model, batch, labels.to(accelerator.device), task.kind)
    return StepTiming(model, preprocess, photo.forward, photo.backward, photo.peak_mb)
