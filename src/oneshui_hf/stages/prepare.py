"""Preparation: what a method computes while training data is still there, saved beside the model.

oneshui prepare --method NAME --run RUN
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from ..errors import UsageError
from ..memory import Peak
from ..methods.contract import Context, DataAccess, Method
from ..models.load import load_model
from ..models.outputs import losses
from ..plugins import METHODS, Plugins
from ..reporting import SILENT, Reporter
from ..runs import Run
from .options import PrepareOptions
from .presets import preset_values
from .processes import make_accelerator, on_main
from .sets import open_data

if TYPE_CHECKING:
    from transformers import PreTrainedModel


TRIED = 16  # photos on which the time of one is measured


@dataclasses.dataclass(frozen=True)
class Preparation:
    """A method ready to prepare: everything checked, everything loaded."""

    folder: Path
    method: Method[Any]
    options: Any
    model: PreTrainedModel
    data: DataAccess
    context: Context

    @classmethod
    def open(
        cls,
        run: Run,
        options: PrepareOptions,
        given: Mapping[str, Any],
        accelerator: Accelerator | None,
        reporter: Reporter,
        folder: Path | None = None,
    ) -> Preparation:
        """Check what was asked for, then load.

        Raises:
            UsageError: The method is unknown or prepares nothing, an option is wrong, or an artefact is there already.
            OneshuiError: The data is missing or has changed.
        """
        name, method_class = options.method, Plugins(METHODS).load(options.method)
        if method_class.prepares == "never":
            raise UsageError(f"Method '{name}' has nothing to prepare; go on with `oneshui unlearn --method {name}`.")
        folder = folder or run.require_complete().artefact(name)
        if folder.exists() and not (options.overwrite or options.dry_run):
            raise UsageError(f"{folder} exists; prepare anew with --overwrite.")
        size = run.request_size
        preset = preset_values(run, name, method_class, options.preset, reporter)
        resolved = method_class.prepare_options(name, preset, given)
        accelerator = accelerator or make_accelerator()
        sets = open_data(run, accelerator, options.data_dir, reporter).sets
        model, _, task = load_model(run.path, accelerator.device)
        context = Context(task, options.seed, accelerator, reporter, request_size=size)
        return cls(folder, method_class(), resolved, model, DataAccess(sets, method_class.needs.prepare), context)


def prepare(
    run: Run,
    options: PrepareOptions,
    method_options: Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    reporter: Reporter = SILENT,
    folder: Path | None = None,
) -> Path:
    """Prepare a method for a run's model and return the artefact's folder; see `Preparation.open` for what is raised.

    Args:
        run: The model.
        options: Which method, and how.
        method_options: The method's own.
        accelerator: For several processes.
        reporter: For progress.
        folder: Where the artefact goes; into the run by default.
    """
    ready = Preparation.open(run, options, method_options or {}, accelerator, reporter, folder)
    started = time.perf_counter()
    with Peak(ready.context.device) as peak:
        artefact = ready.method.prepare(ready.model, ready.data, ready.options, ready.context)
    artefact.options = dataclasses.asdict(ready.options)
    artefact.report |= ready.context.report | {
        "preset": options.preset,
        "processes": ready.context.accelerator.num_processes,
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mb": peak.mb,
        "seed": options.seed,
    }
    on_main(ready.context.accelerator, lambda: artefact.save(ready.folder, options.method, run.weights, replace=options.overwrite))
    return ready.folder


def foresee(
    run: Run,
    options: PrepareOptions,
    method_options: Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Return what preparing would take: photos forward and backward, bytes, and seconds, from a few photos timed on this machine."""
    ready = Preparation.open(run, options, method_options or {}, accelerator, reporter)
    cost = ready.method.cost(ready.model, ready.data, ready.options, ready.context)
    forward, backward = _seconds_a_photo(ready)
    seconds = (cost.forward * forward + cost.backward * backward) / ready.context.accelerator.num_processes
    return {"method": options.method, **dataclasses.asdict(cost), "seconds": round(seconds, 1)}


def _seconds_a_photo(ready: Preparation) -> tuple[float, float]:
    """Time one photo, forward alone and differentiated; the second of two turns counts."""
    train, kind = ready.data.train, ready.context.task.kind
    pixels, labels = train.batch(torch.arange(min(TRIED, len(train))), ready.context.device)
    for _ in range(2):
        started = time.perf_counter()
        with torch.no_grad():
            ready.model(pixel_values=pixels)
        between = time.perf_counter()
        loss = losses(ready.model(pixel_values=pixels).logits, labels, kind).mean()
        torch.autograd.grad(loss, list(ready.model.parameters()), allow_unused=True)
        ended = time.perf_counter()
    return (between - started) / len(pixels), (ended - between) / len(pixels)
