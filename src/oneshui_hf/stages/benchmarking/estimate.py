"""What a benchmark would do and take, told before it is begun: `oneshui benchmark GRID --dry-run`."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from ...data.face_set import FaceSet, face_sets
from ...data.load import load_faces
from ...data.preprocess import Preprocess
from ...data.schema import Faces, Task
from ...data.split import load_split, make_split
from ...errors import OneshuiError
from ...memory import Peak
from ...methods.base import Context, DataAccess
from ...models.load import TINY, new_model
from ...models.outputs import losses
from ...reporting import SILENT, Reporter
from ..command_options import DEFAULT_MODEL, BenchmarkOptions
from ..distributed import make_accelerator
from ..evaluation.model_cache import Stock
from ..evaluation.predictions import ASKED, SETS
from .grid import Cell, Grid, read_grid
from .jobs import Job, jobs_of, read_row
from .setup import claim_output, open_stock, place_data, share

TURNS = 2  # of which the last is timed


@dataclass(frozen=True)
class Speed:
    """What one photo takes on this machine, in seconds, and the peak memory of a training step in MB."""

    model: Any
    preprocess: Preprocess
    forward: float
    backward: float
    peak_mb: int | None


@dataclass(frozen=True)
class Work:
    """Seconds of work, and whether there is more of which the time is not known."""

    seconds: float = 0.0
    at_least: bool = False

    def __add__(self, other: Work) -> Work:
        return Work(self.seconds + other.seconds, self.at_least or other.at_least)


def foresee(options: BenchmarkOptions, accelerator: Accelerator | None = None, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Return the plan of a grid: jobs, what is done or cached, and time and memory as this machine would take them.

    A training step is timed on random pixels, once a data set. What a method takes is known from its earlier rows on the same data set;
    else from what it says of its preparation, and then the time at the request is not counted. Nothing is written.

    Raises:
        UsageError: The grid or an option is wrong.
    """
    grid = place_data(read_grid(options.grid), options.data_dir)
    output = claim_output(options, grid)
    share([], options.shard)
    stock = open_stock(options, grid, output, accelerator or make_accelerator(), reporter)
    notes: list[str] = []
    problems: list[str] = []
    plan: dict[Cell, list[Job]] = {}
    for cell in grid.cells:
        try:
            plan[cell] = jobs_of(grid, cell, stock)
        except OneshuiError as error:
            problems.append(f"{cell.dataset} cannot be planned: {error}")
    every = [job for jobs in plan.values() for job in jobs]
    rows = {job.key: row for job in every if (row := read_row(output, job))}
    mine = {job.key for job in share(every, options.shard)}
    finished = {key for key, row in rows.items() if not (options.retry and row["state"] == "failed")}
    clock = _Clock(grid, stock, list(rows.values()), functools.cache(functools.partial(_speed, stock.accelerator)))
    told, total = [], Work(at_least=bool(problems))
    for cell, jobs in plan.items():
        here = [job for job in jobs if job.key in mine]
        left = [job for job in here if job.key not in finished]
        there = _models_there(grid, jobs[0], stock)
        missing = 2 + grid.evaluate.references - there if left else 0
        about = {"dataset": cell.dataset, "forget": cell.forget, "seed": cell.seed, "jobs": len(here), "done": len(here) - len(left)}
        try:
            work, peak = clock.work(cell, missing, left) if left else (Work(), None)
        except OneshuiError as error:  # no backbone to time, say
            problems.append(f"{cell.dataset} cannot be timed: {error}")
            work, peak = Work(at_least=True), None
        told.append(about | {"models_cached": there, "models_to_train": missing, **dataclasses.asdict(work), "peak_mb": peak})
        total += work
    if total.at_least and not problems:
        notes.append("Not counted: what methods take at the request that have not run on the data set yet.")
    head = {"name": grid.name, "output": str(output), "jobs": len(mine), "done": len(mine & finished)}
    return head | {"plan": told, "notes": notes, "problems": list(dict.fromkeys(problems)), **dataclasses.asdict(total)}


@dataclass(frozen=True)
class _Clock:
    """Foresees the time of a cell."""

    grid: Grid
    stock: Stock
    rows: list[dict[str, Any]]
    speed: Callable[[str, int | None, int, Task], Speed]

    def work(self, cell: Cell, models: int, jobs: list[Job]) -> tuple[Work, int | None]:
        """Return the time of training so many models and of doing jobs, and the peak memory of a training."""
        recipe = cell.train
        faces = load_faces(**recipe.source(), reporter=self.stock.reporter)
        name = recipe.model or (TINY if faces.name == "synthetic" else DEFAULT_MODEL)
        speed = self.speed(name, recipe.image_size, recipe.batch_size, faces.task)
        sets = _sets(cell, faces, speed.preprocess)
        training = recipe.epochs * (len(sets["train"]) * speed.backward + len(sets["val"]) * speed.forward)
        work = Work(models * training)
        for job in jobs:
            work += self._job(job, sets, faces, speed)
        return work, speed.peak_mb

    def _job(self, job: Job, sets: dict[str, FaceSet], faces: Faces, speed: Speed) -> Work:
        """Return what a job takes beside the trained models: the method, on the model and on each reference, and what is measured."""
        measured = self.grid.evaluate
        times = 1 + measured.references
        made = 1 if job.method and job.method.personal else times  # such a method leaves a reference model as it is
        photos = sum(len(sets[name]) for name in SETS) + (measured.queries - 1) * sum(len(sets[name]) for name in ASKED)
        measuring = Work(times * photos * speed.forward)
        if job.entry is None or job.method is None:
            return measuring
        here = (job.label, job.cell.dataset)
        same = [row["cost"] for row in self.rows if row["state"] == "done" and (row["method"], row["dataset"]) == here]
        if same:
            return measuring + Work(made * fmean((cost["prepare_s"] or 0) + cost["apply_s"] for cost in same))
        if job.method.prepares == "never":
            return measuring + Work(at_least=True)
        resolved = job.method.prepare_options(job.entry.method, {}, job.values)
        context = Context(faces.task, job.cell.seed, self.stock.accelerator, request_size=job.cell.forget)
        cost = job.method().cost(speed.model, DataAccess(sets, job.method.needs.prepare), resolved, context)
        return measuring + Work(made * (cost.forward * speed.forward + cost.backward * speed.backward), at_least=True)


def _sets(cell: Cell, faces: Faces, preprocess: Preprocess) -> dict[str, FaceSet]:
    """Return the sets of a cell, without reading photos."""
    options = cell.train
    if options.split:
        split = load_split(Path(options.split)).fitted(faces)[0]
    else:
        split = make_split(faces.photos(), options.seed, options.forget, options.reserve_supports, options.meta_identities)
    return face_sets(faces, _Blank(preprocess.size), split, preprocess)


class _Blank:
    """Photos of which a plan needs the shape alone."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        return np.zeros((len(rows), 3, self.size, self.size), dtype=np.uint8)


def _models_there(grid: Grid, job: Job, stock: Stock) -> int:
    """Return how many of a cell's models are kept already: original, oracle, oracles of other seeds."""
    original = stock.there("original", job.made_from)
    if original is None:
        return 0
    seeds = [original.record.seed + number for number in range(grid.evaluate.references + 1)]
    return 1 + sum(stock.there("oracle", stock.oracle_key(original, seed)) is not None for seed in seeds)


def _speed(accelerator: Accelerator, name: str, image_size: int | None, batch_size: int, task: Task) -> Speed:
    """Time a training step of a new model on random pixels."""
    model, preprocess = new_model(name, task, image_size, 0)
    model.to(accelerator.device)
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (batch_size, 3, preprocess.size, preprocess.size), dtype=torch.uint8, generator=draws)
    batch = preprocess(pixels.to(accelerator.device))
    labels = torch.zeros(batch_size, len(task.label_names)) if task.kind == "multi_label" else torch.zeros(batch_size, dtype=torch.long)
    for _ in range(TURNS):
        with Peak(accelerator.device) as peak:
            started = time.perf_counter()
            with torch.no_grad():
                model(pixel_values=batch)
            between = time.perf_counter()
            losses(model(pixel_values=batch).logits, labels.to(accelerator.device), task.kind).mean().backward()
            ended = time.perf_counter()
        model.zero_grad()
    return Speed(model, preprocess, (between - started) / batch_size, (ended - between) / batch_size, peak.mb)
