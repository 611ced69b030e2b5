"""Tuning: look for a method's options on simulated requests, and write those that did best as a preset file.

oneshui tune --method NAME --run RUN --trials 20
oneshui prepare --method NAME --run RUN --preset RUN/tuned/NAME.json

Whoever asks in a simulated request is a training person who has not asked, and whom the method's own preparation then leaves alone; neither
the run's real request nor its test set is ever looked at. The best setting is the one with the highest ToW among those that cost the
others no more than a bound. Every trial is written at once, so a search that was stopped goes on from there, to the same bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from ..data.pixels import FaceSet
from ..errors import OneshuiError, UsageError
from ..methods.artefact import Artefact
from ..methods.contract import Context, DataAccess, Method
from ..methods.rehearsal import Rehearsal, damage, mean
from ..methods.requests import Request, Simulated, simulate
from ..models.load import load_model
from ..options import fields
from ..plugins import METHODS, Plugins
from ..randomness import generator
from ..reporting import SILENT, Reporter
from ..runs import TUNED, Run, write_json
from ..search import axes, propose
from .options import TuneOptions
from .presets import FORMAT, read_preset
from .processes import make_accelerator, on_main
from .sets import open_data

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Trial = dict[str, Any]  # values, and either scores or the sentence with which the method failed


def tune(
    run: Run,
    options: TuneOptions,
    method_options: Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    reporter: Reporter = SILENT,
) -> Path:
    """Look for a method's options and return the preset's file.

    Raises:
        UsageError: The method is unknown or declares no ranges, an option is wrong, or a file is in the way.
        OneshuiError: The data is missing or has changed, no request can be simulated, or no setting worked.
    """
    name, method_class, method_options = options.method, Plugins(METHODS).load(options.method), method_options or {}
    words = {key.lstrip("-").replace("-", "_") for key in method_options}
    defaults = dataclasses.asdict(method_class.prepare_options(name, {}, method_options))
    given = {key: value for key, value in defaults.items() if key in words}
    space = {key: axis for key, axis in axes(method_class.options).items() if key not in given}
    if not space:
        raise UsageError(f"Method '{name}' has no option left to search; `oneshui methods show {name}` lists the ranges.")
    file = _claim(Path(options.output or run.path / TUNED / f"{name}.json"), options)
    accelerator = accelerator or make_accelerator()
    stage = _Stage.open(run.require_complete(), options, method_class, accelerator, reporter)
    about = {
        "format": FORMAT,
        "method": name,
        "dataset": run.record.dataset["name"],
        "weights": run.weights,
        "searched": sorted(space),
        "given": given,
        "judged_on": stage.told(),
    }
    trials = _earlier(file, name, about) if options.resume and file.exists() else []
    best = best_of(trials, stage.nothing, options.damage)
    for number in reporter.track(range(len(trials), options.trials), f"Tuning {name}"):
        values = propose(space, number, options.seed, defaults | best["values"] if best else None)
        trials.append(stage.attempt(given | values))
        best = best_of(trials, stage.nothing, options.damage)
        found = {"values": best["values"], "scores": best["scores"]} if best else {"values": given, "scores": None}
        told = about | found | {"nothing": stage.nothing, "trials": trials}
        on_main(accelerator, functools.partial(write_json, file, told))
    if best is None:
        raise OneshuiError(f"None of {len(trials)} settings of method '{name}' worked; the last: {trials[-1]['failed']}")
    if damage(best["scores"], stage.nothing) > options.damage:
        reporter.warn(f"Every setting cost the others more than {options.damage:g} points of score; the one that cost least is taken.")
    elif not best["scores"]["tow"] > stage.nothing["tow"]:
        reporter.warn(f"No setting was better than doing nothing (ToW {stage.nothing['tow']:.1f}, the best {best['scores']['tow']:.1f}).")
    return file


def _claim(file: Path, options: TuneOptions) -> Path:
    """Check that the preset may be written.

    Raises:
        UsageError: A file is there and is neither to be gone on with nor to be replaced.
    """
    if options.resume and options.overwrite:
        raise UsageError("--resume goes on with a search and --overwrite replaces it; give one of them.")
    if file.exists() and not (options.resume or options.overwrite):
        raise UsageError(f"{file} exists; go on with --resume, search anew with --overwrite, or name another --output.")
    return file


def _earlier(file: Path, name: str, about: dict[str, Any]) -> list[Trial]:
    """Return the trials of an interrupted search.

    Raises:
        UsageError: It was made with other settings.
    """
    earlier = read_preset(file, name)
    if changed := [key for key, value in about.items() if earlier.get(key) != json.loads(json.dumps(value))]:
        raise UsageError(f"{file} was made with another {' and '.join(changed)}; search anew with --overwrite, or name another --output.")
    return list(earlier["trials"])


def best_of(trials: list[Trial], nothing: Mapping[str, float], bound: float) -> Trial | None:
    """Return the trial with the highest ToW among those within the bound, else the one that did least damage; the earlier of equals."""
    worked = [trial for trial in trials if "scores" in trial]
    within = [trial for trial in worked if damage(trial["scores"], nothing) <= bound]
    if within:
        return max(within, key=lambda trial: trial["scores"]["tow"])
    return min(worked, key=lambda trial: damage(trial["scores"], nothing), default=None)


class _Stage:
    """Where settings are tried: the model, the data of a preparation, and the requests on which they are judged."""

    def __init__(
        self,
        model: PreTrainedModel,
        sets: dict[str, FaceSet],
        rehearsals: list[Rehearsal],
        unseen: bool,
        options: TuneOptions,
        method_class: type[Method[Any]],
        context: Context,
    ) -> None:
        self.model, self.sets, self.rehearsals, self.options = model, sets, rehearsals, options
        self.unseen, self.method_class, self.context = unseen, method_class, context
        self.nothing = mean([rehearsal.nothing() for rehearsal in rehearsals])
        self.prepared: tuple[dict[str, Any], Artefact] | None = None  # the last one, with the options that it was made with

    @classmethod
    def open(cls, run: Run, options: TuneOptions, method_class: type[Method[Any]], accelerator: Accelerator, reporter: Reporter) -> _Stage:
        """Load model and data, and simulate the requests."""
        data = open_data(run, accelerator, options.data_dir, reporter)
        model, _, task = load_model(run.path, accelerator.device)
        sets = dict(data.sets)
        requests, unseen = _requests(sets, run.record.report["split"]["forget_identities"], options, reporter)
        asked = {person for request in requests for person in request.people}
        # A method that simulates requests of its own, to learn from, must not learn from those that it is judged on.
        sets["train"] = dataclasses.replace(sets["train"], spared=sets["train"].spared | asked)
        context = Context(task, options.seed, accelerator, SILENT, request_size=len(requests[0].people))
        draws = generator(options.seed, "judging")
        rehearsals = [Rehearsal(model, sets["train"], sets["val"], request, context, draws, options.sample) for request in requests]
        return cls(model, sets, rehearsals, unseen, options, method_class, context)

    def told(self) -> dict[str, Any]:
        """Return what is known of the judging, without a word of who."""
        people = [len(rehearsal.request.people) for rehearsal in self.rehearsals]
        asked = {name: getattr(self.options, name) for name in ("seed", "sample", "damage")}
        return asked | {"people": people, "unseen_photos": self.unseen}

    def attempt(self, values: dict[str, Any]) -> Trial:
        """Prepare and apply with these values, and return the mean scores over the requests, or why the method failed."""
        name = self.options.method
        try:
            resolved = self.method_class.prepare_options(name, {}, values)
            artefact = self._prepare(resolved)
            scores = mean([rehearsal.judge(self._apply(rehearsal.request, artefact, resolved)) for rehearsal in self.rehearsals])
        except OneshuiError as error:  # a setting may be out of bounds for this model, which is no reason to stop
            return {"values": values, "failed": str(error)}
        if not all(map(math.isfinite, scores.values())):
            return {"values": values, "failed": "The scores are not finite."}
        return {"values": values, "scores": scores}

    def _prepare(self, resolved: Any) -> Artefact | None:
        if self.method_class.prepares == "never":
            return None
        known = fields(self.method_class.options)
        key = {name: value for name, value in dataclasses.asdict(resolved).items() if known[name].metadata["at"] == "prepare"}
        if self.prepared is None or self.prepared[0] != key:
            data = DataAccess(self.sets, self.method_class.needs.prepare)
            self.prepared = key, self.method_class().prepare(self.model, data, resolved, self._context())
        return self.prepared[1]

    def _apply(self, request: Simulated, artefact: Artefact | None, resolved: Any) -> torch.nn.Module:
        """Return the model that has forgotten a simulated request."""
        train = self.sets["train"]
        pixels, labels = request.support_set.batch(request.support, self.context.device)
        names = tuple(train.people[person] for person in request.people)
        granted = self.sets | {
            "support": Request(pixels, names, labels, labels_given=True),
            "forget": train.subset(request.forget),
            "retain": train.subset(train.without(request.people)),
        }
        return self.method_class().apply(
            self.model, DataAccess(granted, self.method_class.needs.apply), artefact, resolved, self._context()
        )

    def _context(self) -> Context:
        """Return a context of this call's own; what a method reports of a trial is not kept."""
        return dataclasses.replace(self.context, report={})


def _requests(sets: dict[str, FaceSet], size: int, options: TuneOptions, reporter: Reporter) -> tuple[list[Simulated], bool]:
    """Return requests like the run's own, and whether their photos are unseen.

    Each is of as many people, and of different ones, none of whom asks in the real request.
    Half of those who can ask are left to methods that learn from simulated requests.
    """
    train, real = sets["train"], set(sets["forget"].identities.tolist())
    train = dataclasses.replace(train, spared=train.spared | real)
    reserved = train.reserved
    unseen = reserved is not None and any(person not in train.spared for person in reserved.positions_of)
    if not unseen:
        reporter.warn("No photo is reserved in the split, so photos that the model was trained on are handed in; results will flatter.")
    people = sum(len(request.people) for request in simulate(train, (1, 1), generator(options.seed, "people"), unseen=unseen))
    size = max(1, min(size, people // 2))
    drawn = simulate(train, (size, size), generator(options.seed, "people"), unseen=unseen)
    requests = [request for request in drawn if len(request.people) == size][: min(options.requests, max(1, people // 2 // size))]
    reporter.note(f"Judging on {len(requests)} simulated request{'s' if len(requests) > 1 else ''} of {size}, out of {people} people.")
    return requests, unseen
