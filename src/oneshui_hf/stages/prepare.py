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
from ..methods.base import Context, DataAccess, Method
from ..methods.resume import Unfinished
from ..models.load import load_model
from ..models.outputs import losses
from ..plugins import METHODS, Plugins
from ..recognition.encoders import NONE, Encoder
from ..reporting import SILENT, Reporter
from ..runs import Run, versions
from ..vault import vault_root
from .command_options import PrepareOptions
from .distributed import make_accelerator, on_main
from .identify import enrol_people, open_encoder
from .presets import preset_values
from .run_data import RunData, open_data

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
    run_data: RunData
    encoder: Encoder | None

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
            UsageError: The method is unknown or prepares nothing, an option is wrong, an artefact is there already, or an interrupted
                preparation of it is there or is not, other than the options say.
            OneshuiError: The data is missing or has changed, or the interrupted preparation is another one.
        """
        name, method_class = options.method, Plugins(METHODS).load(options.method)
        if method_class.prepares == "never":
            raise UsageError(f"Method '{name}' has nothing to prepare; go on with `oneshui unlearn --method {name}`.")
        if options.face_encoder not in (None, NONE) and not method_class.personal:
            raise UsageError(f"--face-encoder is for methods that act on people one by one, which '{name}' does not; leave it out.")
        folder = folder or run.require_complete().artefact(name)
        _claim(folder, options)
        size = run.request_size
        preset = preset_values(run, name, method_class, options.preset, reporter)
        resolved = method_class.prepare_options(name, preset, given)
        accelerator = accelerator or make_accelerator()
        unfinished = Unfinished(begun(folder), _about(run, options, resolved), saves=accelerator.is_main_process)
        if options.resume:
            unfinished.load()  # so that a mistake is told before anything takes long
        enrols = method_class.personal and not options.dry_run
        encoder = open_encoder(options.face_encoder, accelerator, reporter) if enrols else None
        found = open_data(run, accelerator, options.data_dir, reporter)
        model, _, task = load_model(run.path, accelerator.device)
        context = Context(task, options.seed, accelerator, reporter, request_size=size, unfinished=unfinished)
        return cls(folder, method_class(), resolved, model, DataAccess(found.sets, method_class.needs.prepare), context, found, encoder)


def begun(folder: Path) -> Path:
    """Return where lies what is remembered of an artefact's preparation while it works. No artefact, and never published."""
    return folder.with_name(f".{folder.name}.unfinished")


def _claim(folder: Path, options: PrepareOptions) -> None:
    """Check that the artefact may be written.

    Raises:
        UsageError: It may not: it is there, or was begun, or was not.
    """
    if options.resume and options.overwrite:
        raise UsageError("--resume goes on with a preparation and --overwrite replaces it; give one of them.")
    if options.dry_run or options.overwrite:
        return
    interrupted = Unfinished(begun(folder)).is_there
    if options.resume and not interrupted:
        raise UsageError(f"There is no interrupted preparation of {folder} to go on with; leave --resume out.")
    if interrupted and not options.resume:
        raise UsageError(f"The preparation of {folder} was interrupted; go on with --resume, or start anew with --overwrite.")
    if folder.exists() and not options.resume:  # what goes on where an artefact is was begun with --overwrite
        raise UsageError(f"{folder} exists; prepare anew with --overwrite.")


def _about(run: Run, options: PrepareOptions, resolved: Any) -> dict[str, Any]:
    """Return what a preparation depends on."""
    return {
        "method": options.method,
        "method_from": Plugins(METHODS).origin(options.method),
        "version": versions()["oneshui-hf"],
        "weights": run.weights,
        "options": dataclasses.asdict(resolved),
        "seed": options.seed,
    }


def prepare(
    run: Run,
    options: PrepareOptions,
    method_options: Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    reporter: Reporter = SILENT,
    folder: Path | None = None,
    vault: Path | None = None,
) -> Path:
    """Prepare a method for a run's model and return the artefact's folder; see `Preparation.open` for what is raised.

    Args:
        run: The model.
        options: Which method, and how.
        method_options: The method's own.
        accelerator: For several processes.
        reporter: For progress.
        folder: Where the artefact goes; into the run by default.
        vault: Where the secrets of its people go; the user's own vault by default.
    """
    vault = _vault(vault, run)
    ready = Preparation.open(run, options, method_options or {}, accelerator, reporter, folder)
    unfinished = ready.context.unfinished
    if options.overwrite:
        on_main(ready.context.accelerator, unfinished.forget)
    started = time.perf_counter()
    with Peak(ready.context.device) as peak:
        artefact = ready.method.prepare(ready.model, ready.data, ready.options, ready.context)
        if ready.encoder is not None and artefact.people:
            enrol_people(artefact, ready.encoder, options.face_encoder, ready.run_data, ready.context)
    artefact.options = dataclasses.asdict(ready.options)
    artefact.report |= ready.context.report | {
        "preset": options.preset,
        "processes": ready.context.accelerator.num_processes,
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mb": peak.mb,
        "seed": options.seed,
    }

    def save() -> None:
        artefact.save(ready.folder, options.method, run.weights, replace=options.overwrite or options.resume, vault=vault)
        unfinished.forget()

    on_main(ready.context.accelerator, save)
    return ready.folder


def _vault(given: Path | None, run: Run) -> Path:
    vault = given or vault_root()
    if run.path.resolve() in (vault.resolve(), *vault.resolve().parents):
        raise UsageError(f"The vault {vault} lies in {run.path}, so whoever gets the run gets the secrets; set ONESHUI_VAULT elsewhere.")
    return vault


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
