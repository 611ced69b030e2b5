"""Preparation: a method's computations on training data, saved as an artefact of the run.

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

from ..cache import Cache, cache_root
from ..errors import UsageError
from ..memory import PeakMemory
from ..methods.artefact import Artefact
from ..methods.base import Context, DataAccess, Method
from ..methods.identity_store import discard_with_secrets
from ..methods.resume import ResumeState
from ..models.load import load_model
from ..options import field_name, fields, flag, names, original_names
from ..plugins import METHODS, Plugins
from ..processes import locked_output, on_main
from ..recognition.encoders import FaceEncoder
from ..reporting import SILENT, Reporter
from ..runs import Run, versions
from ..vault import vault_root
from .batch_cost import simulate_batches, simulation_cost
from .checks import check_preparation, require_writable_artefact, resume_folder
from .command_options import PrepareOptions
from .distributed import make_accelerator
from .identify import add_face_templates, open_encoder
from .presets import preset_values
from .recovery import clear_killed_work, refuse_during_request
from .run_data import RunData, open_data, training_options
from .timing import time_per_photo
from .tracking import method_config, tracked
from .training.fold_models import FoldModels
from .training.recipe import seconds_per_photo

if TYPE_CHECKING:
    from transformers import PreTrainedModel


TIMED_PHOTOS = 16  # batch size of the time measurement


@dataclasses.dataclass(frozen=True)
class Preparation:
    """A method with its checked options, and the loaded model and data."""

    folder: Path
    method: Method[Any]
    options: Any
    model: PreTrainedModel
    data: DataAccess
    context: Context
    run_data: RunData
    encoder: FaceEncoder | None

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
        """Check the options, then load model and data.

        Raises:
            UsageError: The method is unknown or prepares nothing, an option is wrong, the artefact exists, or the options do not match the
                existence of an interrupted preparation.
            OneshuiError: The data is missing or has changed, or the interrupted preparation had other inputs.
        """
        name, method_class = options.method, Plugins(METHODS).load(options.method)
        check_preparation(name, method_class, options)
        folder = folder or run.require_complete().artefact(name)
        require_writable_artefact(folder, options)
        size = run.request_size
        preset = preset_values(run, name, method_class, options.preset, reporter)
        resolved = method_class.prepare_options(name, preset, given)
        spellings, known = names(method_class.options), fields(method_class.options)
        for ignored in sorted(method_class.inactive_options(resolved) & {spellings[field_name(key)] for key in given}):
            if getattr(resolved, ignored) != known[ignored].default:  # a benchmark gives all options
                reporter.warn(f"{flag(ignored)} has no effect with the other options of '{name}', and is ignored.")
        accelerator = accelerator or make_accelerator()
        resume_state = ResumeState(
            resume_folder(folder),
            _inputs(run, options, resolved),
            saves=accelerator.is_main_process,
            every=options.save_steps,
            accelerator=accelerator,
            reporter=reporter,
        )
        if options.resume:
            resume_state.load()  # to report an error before any long computation
        needs_encoder = method_class.per_identity and not options.dry_run
        encoder = open_encoder(options.face_encoder, accelerator, reporter) if needs_encoder else None
        run_data = open_data(run, accelerator, options.data_dir, reporter)
        model, _, task = load_model(run.path, accelerator.device)
        retrain = FoldModels(run, run_data, Cache(cache_root(options.cache_dir)), accelerator, reporter)
        context = Context(task, options.seed, accelerator, reporter, request_size=size, resume_state=resume_state, retrain=retrain)
        data = DataAccess(run_data.sets, method_class.needs.prepare)
        return cls(folder, method_class(), resolved, model, data, context, run_data, encoder)


def _inputs(run: Run, options: PrepareOptions, resolved: Any) -> dict[str, Any]:
    """Return the inputs of a preparation. A resume state with other inputs is refused; renamed options do not change them."""
    return {
        "method": options.method,
        "method_from": Plugins(METHODS).origin(options.method),
        "version": versions()["oneshui-hf"],
        "weights": run.weights,
        "options": original_names(type(resolved), dataclasses.asdict(resolved)),
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
    """Prepare a method for a run's model and return the artefact's folder.

    Args:
        run: The model.
        options: The method, and options of every preparation.
        method_options: Options of the method.
        accelerator: For several processes.
        reporter: For progress.
        folder: Folder of the artefact; in the run by default.
        vault: Folder of the secrets of its per-identity data; the user's vault by default.

    Raises:
        UsageError: See `Preparation.open`; or the vault is inside the run.
        OneshuiError: See `Preparation.open`; or another process prepares this method for this run, or destroys data of the run.
    """
    vault, accelerator = _vault_outside(run, vault), accelerator or make_accelerator()
    place = folder or run.artefact(options.method)
    on_main(accelerator, lambda: clear_killed_work(run.path, vault=vault, reporter=reporter))
    with locked_output(place, accelerator, discard_with_secrets(vault)):
        on_main(accelerator, lambda: refuse_during_request(place))
        ready = Preparation.open(run, options, method_options or {}, accelerator, reporter, place)
        config = method_config(options.method, dataclasses.asdict(ready.options)) | {"seed": options.seed}
        logs = run.path.resolve().with_name(f"{run.path.resolve().name}-{options.method}")
        with tracked(options.report_to, logs, config, accelerator, reporter) as tracking:
            context = dataclasses.replace(ready.context, reporter=tracking)
            return _prepare(dataclasses.replace(ready, context=context), run, options, vault)


def _prepare(ready: Preparation, run: Run, options: PrepareOptions, vault: Path) -> Path:
    resume_state = ready.context.resume_state
    if options.overwrite:
        on_main(ready.context.accelerator, resume_state.delete)
    started = time.perf_counter()
    with PeakMemory(ready.context.device) as peak:
        finished = resume_state.part("artefact")
        artefact = Artefact.load_state(finished)
        if artefact is None:
            artefact = ready.method.prepare(ready.model, ready.data, ready.options, ready.context)
            artefact.report |= ready.context.report
            if ready.encoder is not None and artefact.people:  # enrolment may take long, and may be interrupted as well
                artefact.save_state(finished)
        if ready.encoder is not None and artefact.people:
            add_face_templates(artefact, ready.encoder, options.face_encoder, ready.run_data, ready.context)
    artefact.options = dataclasses.asdict(ready.options)
    artefact.report |= {
        "preset": options.preset,
        "processes": ready.context.accelerator.num_processes,
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mb": peak.mb,
        "seed": options.seed,
    }
    if options.simulate_batches:
        sets = ready.run_data.sets
        artefact.report |= simulate_batches(ready.method, ready.model, sets, artefact, ready.options, ready.context)

    def save() -> None:
        artefact.save(ready.folder, options.method, run.weights, replace=options.overwrite or options.resume, vault=vault)
        resume_state.delete()

    on_main(ready.context.accelerator, save)
    if artefact.report.get("fold_models"):
        ready.context.reporter.note(
            "The fold models stay in the cache for another preparation. They were trained on the run's people; `oneshui cache clear --kind "
            "fold` removes them."
        )
    return ready.folder


def _vault_outside(run: Run, given: Path | None) -> Path:
    """Return the vault: the given one or the user's.

    Raises:
        UsageError: It is inside the run.
    """
    vault = given or vault_root()
    if run.path.resolve() in (vault.resolve(), *vault.resolve().parents):
        raise UsageError(f"The vault {vault} is inside {run.path}, so a copy of the run contains the secrets; set ONESHUI_VAULT elsewhere.")
    return vault


def estimate_preparation(
    run: Run,
    options: PrepareOptions,
    method_options: Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Return the estimated cost of a preparation: photos forward and backward, bytes, and seconds on this machine.

    The seconds do not contain the time in which the method itself makes the models of `simulated_requests`.
    """
    ready = Preparation.open(run, options, method_options or {}, accelerator, reporter)
    ready = dataclasses.replace(ready, context=dataclasses.replace(ready.context, resume_state=ResumeState()))  # nothing is saved
    cost = ready.method.cost(ready.model, ready.data, ready.options, ready.context)
    train = ready.run_data.sets["train"]  # also for a method that does not prepare from it
    pixels, labels = train.batch(torch.arange(min(TIMED_PHOTOS, len(train))), ready.context.device)
    photo = time_per_photo(ready.model, pixels, labels, ready.context.task.kind)
    training = seconds_per_photo(training_options(run), photo.forward, photo.backward)
    seconds = cost.seconds(photo.forward, photo.backward, training) / ready.context.accelerator.num_processes
    models, scored = simulation_cost(type(ready.method), ready.run_data.sets, options.seed) if options.simulate_batches else (0, 0)
    return {
        "method": options.method,
        **dataclasses.asdict(cost),
        "simulated_requests": models,
        "simulation_forward": scored,
        "seconds": seconds + scored * photo.forward,
    }
