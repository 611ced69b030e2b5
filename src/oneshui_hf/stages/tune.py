"""Tuning: search a method's options on simulated requests, and write the best setting as a preset file.

oneshui tune --method NAME --run RUN --trials 20
oneshui prepare --method NAME --run RUN --preset RUN/tuned/NAME.json

The identities of a simulated request are training identities outside the forget set. The method's own preparation excludes them from its
simulated requests, unless it prepares per-identity data: then it prepares these identities as well. The forget identities are ordinary
training identities to the method, but no setting is scored on their photos. The support images and the test set are never read. (The unseen
identities are those of val, from which some methods also learn.) The best setting has the highest ToW among the settings whose retain drop
is within a bound. Every trial is written at once, and the preparation of a trial saves its state as `oneshui prepare` does, so an
interrupted search resumes to the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from ..cache import Cache, cache_root
from ..data.face_set import FaceSet
from ..data.schema import Task
from ..errors import OneshuiError, UsageError
from ..files import remove
from ..methods.artefact import Artefact
from ..methods.base import Context, DataAccess, Method
from ..methods.resume import UNFINISHED, ResumeState
from ..methods.simulation import (
    SimulatedRequest,
    SimulatedRequestTrial,
    mean_scores,
    retain_drop,
    scorable_requests,
    simulate,
    unlearn_simulated,
)
from ..models.load import load_model
from ..options import current_names, fields, original_names
from ..plugins import METHODS, Plugins
from ..processes import broadcast_from_main, locked_output, on_main
from ..public_names import dataset_name
from ..random_search import axes, propose
from ..reporting import SILENT, Reporter
from ..runs import Run, dump_json, write_json
from ..seeding import generator
from .checks import check_tune, resume_folder
from .command_options import TuneOptions
from .distributed import make_accelerator
from .presets import FORMAT, read_preset
from .recovery import clear_killed_work, refuse_during_request
from .run_data import open_data
from .training.fold_models import FoldModels

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Trial = dict[str, Any]  # values, and scores or None if the method failed: error messages may contain names or paths


def tune(
    run: Run,
    options: TuneOptions,
    method_options: Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    reporter: Reporter = SILENT,
) -> Path:
    """Search a method's options and return the preset file.

    Raises:
        UsageError: The method is unknown or declares no ranges, an option is wrong, or the file exists.
        OneshuiError: The data is missing or has changed, no request can be simulated, no setting worked, or another process is writing the
            file.
    """
    method_options = method_options or {}
    file = check_tune(run, options, method_options)
    run.require_complete()
    accelerator = accelerator or make_accelerator()
    on_main(accelerator, lambda: clear_killed_work(run.path, reporter=reporter))
    with locked_output(file, accelerator, flag="--output"):
        on_main(accelerator, lambda: check_tune(run, options, method_options))  # another process may have written the file meanwhile
        with _state_folders(run, file, options, accelerator) as states:
            return _search(file, run, options, method_options, accelerator, reporter, states)


@contextlib.contextmanager
def _state_folders(run: Run, file: Path, options: TuneOptions, accelerator: Accelerator) -> Iterator[Path | None]:
    """Yield the start of the names of the folders for the states of preparations; None if the run cannot be written.

    They are in the run, where a request that destroys a person's data finds them. No such request runs meanwhile.

    Raises:
        OneshuiError: A request destroys data of the run.
    """
    place = run.artefact(f"tuning-{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}")

    def clear() -> None:
        for folder in place.parent.glob(f"{resume_folder(place).stem}-*{UNFINISHED}"):
            remove(folder)

    if not broadcast_from_main(accelerator, os.access(run.path, os.W_OK | os.X_OK)):
        yield None
        return
    with locked_output(place, accelerator):
        on_main(accelerator, lambda: refuse_during_request(place))
        if not options.resume:
            on_main(accelerator, clear)
        yield place
        on_main(accelerator, clear)


def _search(
    file: Path,
    run: Run,
    options: TuneOptions,
    method_options: Mapping[str, Any],
    accelerator: Accelerator,
    reporter: Reporter,
    states: Path | None,
) -> Path:
    name, method_class = options.method, Plugins(METHODS).load(options.method)
    resolved = method_class.prepare_options(name, {}, method_options)
    defaults = dataclasses.asdict(resolved)
    given = {field: defaults[field] for field in current_names(method_class.options, method_options)}
    inactive = method_class.inactive_options(resolved)
    space = {key: axis for key, axis in axes(method_class.options).items() if key not in given and key not in inactive}
    if not space:
        raise UsageError(f"Method '{name}' has no option to search here; `oneshui methods show {name}` lists those that have a range.")
    about = {
        "format": FORMAT,
        "method": name,
        "method_from": Plugins(METHODS).origin(name),
        "dataset": dataset_name(run.record),
        "weights": run.weights,
        "given": given,
        "searched": {key: list(axis.choices or (axis.low, axis.high)) for key, axis in space.items()},
        "judged_by": {"damage": options.retain_budget} | {key: getattr(options, key) for key in ("seed", "requests", "sample")},
    }
    trials = _read_trials(file, name, method_class, about) if options.resume and file.exists() else []
    inputs = {key: about[key] for key in ("method", "method_from", "weights", "judged_by")}
    runner = TrialRunner.open(run, options, method_class, accelerator, reporter, states, inputs)
    best = best_trial(trials, runner.baseline, options.retain_budget)
    for number in reporter.track(range(len(trials), options.trials), f"Tuning {name}"):
        values = propose(space, number, options.seed, defaults | best["values"] if best else None)
        trials.append(runner.run_trial(given | values, number))
        best = best_trial(trials, runner.baseline, options.retain_budget)
        result = {"values": best["values"], "scores": best["scores"]} if best else {"values": given, "scores": None}
        preset = about | result | {"people": runner.people, "unseen_photos": runner.unseen, "nothing": runner.baseline, "trials": trials}
        on_main(accelerator, functools.partial(write_json, file, preset))
    if best is None:
        raise OneshuiError(f"None of {len(trials)} settings of method '{name}' worked; each failure was reported above.")
    if retain_drop(best["scores"], runner.baseline) > options.retain_budget:
        reporter.warn(
            f"Every setting has a retain drop above {options.retain_budget:g} points of score; the one with the smallest drop is used."
        )
    elif not best["scores"]["tow"] > runner.baseline["tow"]:
        reporter.warn(
            f"No setting is better than the unchanged model (ToW {runner.baseline['tow']:.1f}, best {best['scores']['tow']:.1f})."
        )
    return file


SETTINGS = {  # keys of a preset file that a resumed search must share, and their names in messages
    "method_from": "version of the method",
    "dataset": "data set",
    "weights": "model",
    "given": "option of the method",
    "searched": "range of the method's options, or other options given",
    "judged_by": "--seed, --requests, --sample or --retain-budget",
}


def _read_trials(file: Path, name: str, method_class: type[Method[Any]], about: dict[str, Any]) -> list[Trial]:
    """Return the trials of an interrupted search.

    Raises:
        UsageError: The search had other settings.
    """
    stored = read_preset(file, name, method_class)
    for key, noun in SETTINGS.items():
        if stored.get(key) != json.loads(json.dumps(about[key])):
            raise UsageError(f"{file} was made with another {noun}; search again with --overwrite, or name another file with --output.")
    return list(stored["trials"])


def best_trial(trials: list[Trial], baseline: Mapping[str, float], bound: float) -> Trial | None:
    """Return the trial with the highest ToW among those with a retain drop within the bound, else the one with the smallest drop.

    Of equal trials, the earlier one is returned.
    """
    worked = [trial for trial in trials if trial["scores"] is not None]
    within = [trial for trial in worked if retain_drop(trial["scores"], baseline) <= bound]
    if within:
        return max(within, key=lambda trial: trial["scores"]["tow"])
    return min(worked, key=lambda trial: retain_drop(trial["scores"], baseline), default=None)


class TrialRunner:
    """Runs and scores settings: the model, the data of preparations, and the simulated requests.

    Attributes:
        baseline: Mean scores of the unchanged model over the requests.
        unseen: Whether the support images are photos that the model has not seen.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sets: dict[str, FaceSet],
        requests: list[SimulatedRequestTrial],
        unseen: bool,
        options: TuneOptions,
        method_class: type[Method[Any]],
        context: Context,
        reporter: Reporter,
        states: Path | None,
        inputs: dict[str, Any],
    ) -> None:
        self.model, self.sets, self.requests, self.options = model, sets, requests, options
        self.unseen, self.method_class, self.context, self.reporter = unseen, method_class, context, reporter
        self._states, self._inputs = states, inputs
        self.baseline = mean_scores([request.baseline() for request in requests])
        self._prepared: tuple[dict[str, Any], Artefact] | None = None  # the latest artefact, with its preparation options

    @classmethod
    def open(
        cls,
        run: Run,
        options: TuneOptions,
        method_class: type[Method[Any]],
        accelerator: Accelerator,
        reporter: Reporter,
        states: Path | None,
        inputs: dict[str, Any],
    ) -> TrialRunner:
        """Load model and data, and simulate the requests.

        Args:
            run: The model.
            options: Of the search.
            method_class: The method.
            accelerator: For several processes.
            reporter: For progress and notes.
            states: See `_state_folders`.
            inputs: What the preparations of all trials have in common.
        """
        data = open_data(run, accelerator, options.data_dir, reporter)
        model, _, task = load_model(run.path, accelerator.device)
        sets = dict(data.sets)
        forget = set(sets["forget"].identities.tolist())
        simulated, unseen = _simulate_requests(sets["train"], task, forget, run.request_size, options, reporter)
        requested = {person for request in simulated for person in request.people}
        if not method_class.per_identity:
            # A method that learns from simulated requests must not learn from those on which it is scored. A method with per-identity
            # data prepares these identities as well, as it does for those of a real request.
            excluded = sets["train"].excluded_from_simulation | requested
            sets["train"] = dataclasses.replace(sets["train"], excluded_from_simulation=excluded)
        retrain = FoldModels(run, data, Cache(cache_root(options.cache_dir)), accelerator, reporter)
        context = Context(task, options.seed, accelerator, SILENT, request_size=len(simulated[0].people), retrain=retrain)
        draws = generator(options.seed, "judging")
        train, val = sets["train"], sets["val"]
        requests = [SimulatedRequestTrial(model, train, val, one, context, draws, options.sample, exclude=forget) for one in simulated]
        return cls(model, sets, requests, unseen, options, method_class, context, reporter, states, inputs)

    @property
    def people(self) -> list[int]:
        """Number of identities of each request."""
        return [len(trial.request.people) for trial in self.requests]

    def run_trial(self, values: dict[str, Any], number: int) -> Trial:
        """Prepare and apply the method with these values, and return the mean scores over the requests.

        Raises:
            UsageError: The first setting (given values and defaults) is invalid.
        """
        name = self.options.method
        try:
            resolved = self.method_class.prepare_options(name, {}, values)
            artefact = self._prepare(resolved)
            scores = mean_scores([trial.score(self._apply(trial.request, artefact, resolved)) for trial in self.requests])
            if all(map(math.isfinite, scores.values())):
                return {"values": values, "scores": scores}
            reason: object = "the scores are not finite."
        except (OneshuiError, RuntimeError) as error:  # torch raises RuntimeError, for example if a value is out of bounds for this model
            if number == 0 and isinstance(error, UsageError):
                raise
            reason = error
        self.reporter.note(f"Setting {number + 1} failed: {reason}")
        return {"values": values, "scores": None}

    def _prepare(self, resolved: Any) -> Artefact | None:
        """Return the artefact of a setting; settings with the same preparation options share it."""
        if self.method_class.prepares == "never":
            return None
        known = fields(self.method_class.options)
        key = {name: value for name, value in dataclasses.asdict(resolved).items() if known[name].metadata["at"] == "prepare"}
        if self._prepared is None or self._prepared[0] != key:
            data, state = DataAccess(self.sets, self.method_class.needs.prepare), self._state(key)
            context = dataclasses.replace(self._new_context(), resume_state=state)
            try:
                self._prepared = key, self.method_class().prepare(self.model, data, resolved, context)
            except (OneshuiError, RuntimeError):  # the setting failed, so its preparation is not continued
                state.delete()
                raise
            state.delete()
        return self._prepared[1]

    def _state(self, values: dict[str, Any]) -> ResumeState:
        """Return the resume state of a preparation with these values."""
        about = self._inputs | {"options": original_names(self.method_class.options, values)}
        name = hashlib.sha256(dump_json(about)).hexdigest()[:8]
        accelerator = self.context.accelerator
        return ResumeState(
            resume_folder(self._states.with_name(f"{self._states.name}-{name}")) if self._states else None,
            about,
            saves=accelerator.is_main_process,
            every=self.options.save_steps,
            accelerator=accelerator,
            reporter=self.reporter,
        )

    def _apply(self, request: SimulatedRequest, artefact: Artefact | None, resolved: Any) -> torch.nn.Module:
        """Return the unlearned model of a simulated request."""
        return unlearn_simulated(self.method_class(), self.model, self.sets, request, artefact, resolved, self._new_context())

    def _new_context(self) -> Context:
        """Return a context with an empty report; a method's reports of trials are discarded."""
        return dataclasses.replace(self.context, report={})


def _simulate_requests(
    train: FaceSet, task: Task, forget: set[int], size: int, options: TuneOptions, reporter: Reporter
) -> tuple[list[SimulatedRequest], bool]:
    """Return simulated requests like the run's own, and whether their support images are unseen photos.

    Each request has as many identities as the run's own if possible. All identities are different, and none is in the forget set.
    Half of the eligible identities are left to methods that learn from simulated requests.
    """
    train = dataclasses.replace(train, excluded_from_simulation=train.excluded_from_simulation | forget)
    unseen = train.reserved is not None and any(person not in train.excluded_from_simulation for person in train.reserved.positions_of)
    if not unseen:
        reporter.warn("The split reserves no photo, so support images are training photos of the model; results will be too optimistic.")
    people = sum(len(request.people) for request in simulate(train, (1, 1), generator(options.seed, "people"), unseen=unseen))
    limit = max(1, people // 2)
    fit = min(size, limit)
    simulated = simulate(train, (fit, fit), generator(options.seed, "people"), unseen=unseen)
    complete = [request for request in simulated if len(request.people) == fit]
    requests = scorable_requests(complete, train, task)[: min(options.requests, limit // fit)]
    plural = "s" if len(requests) > 1 else ""
    summary = f"Scoring on {len(requests)} simulated request{plural} of {fit}, out of {people} eligible identities."
    if fit < size:
        reporter.warn(f"{summary} The run's own request has {size}; train with a larger --reserve-supports to simulate as many.")
    else:
        reporter.note(summary)
    return requests, unseen
