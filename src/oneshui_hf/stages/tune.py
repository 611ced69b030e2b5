"""Tuning: look for a method's options on simulated requests, and write those that did best as a preset file.

oneshui tune --method NAME --run RUN --trials 20
oneshui prepare --method NAME --run RUN --preset RUN/tuned/NAME.json

Whoever asks in a simulated request is a training person who does not ask in the run's own, and whom the method's own preparation then
leaves alone, unless it prepares for people one by one, and so for these, too. Those who do ask are training people like others to the
method, but no setting is judged by their photos, and the photos that they hand in and the test set are never looked at. (Strangers are
those of val, which some methods learn from, too.) The best setting is the one with the highest ToW among those that cost the others no
more than a bound. Every trial is written at once, so a search that was stopped goes on from there, to the same bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from ..data.face_set import FaceSet
from ..errors import OneshuiError, UsageError
from ..methods.artefact import Artefact
from ..methods.base import Context, DataAccess, Method
from ..methods.requests import Request
from ..methods.simulation import Rehearsal, Simulated, damage, mean, simulate
from ..models.load import load_model
from ..options import field_name, fields, names
from ..plugins import METHODS, Plugins
from ..public_names import dataset_name
from ..random_search import axes, propose
from ..reporting import SILENT, Reporter
from ..runs import TUNED, Run, hash_file, read_object, write_json
from ..seeding import generator
from .command_options import TuneOptions
from .distributed import make_accelerator, on_main
from .presets import FORMAT, read_preset
from .run_data import open_data

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Trial = dict[str, Any]  # values, and scores, or none where the method failed: its words might tell of people or places


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
    spellings = names(method_class.options)
    resolved = method_class.prepare_options(name, {}, method_options)
    defaults = dataclasses.asdict(resolved)
    given = {field: defaults[field] for field in (spellings[field_name(key)] for key in method_options)}
    idle = method_class.idle(resolved)
    space = {key: axis for key, axis in axes(method_class.options).items() if key not in given and key not in idle}
    if not space:
        raise UsageError(f"Method '{name}' has no option to search here; `oneshui methods show {name}` lists those that have a range.")
    file = Path(options.output or run.path / TUNED / f"{name}.json")
    _claim(file, options)
    if run.require_complete().record.kind == "oracle":
        raise UsageError(f"{run.path} is an oracle, which knows nobody to forget; tune on the original model.")
    about = {
        "format": FORMAT,
        "method": name,
        "method_from": Plugins(METHODS).origin(name),
        "dataset": dataset_name(run.record),
        "weights": run.weights,
        "given": given,
        "searched": {key: list(axis.words or (axis.low, axis.high)) for key, axis in space.items()},
        "judged_by": {"damage": options.max_retain_drop} | {key: getattr(options, key) for key in ("seed", "requests", "sample")},
    }
    trials = _earlier(file, name, method_class, about) if options.resume and file.exists() else []
    accelerator = accelerator or make_accelerator()
    stage = _Stage.open(run, options, method_class, accelerator, reporter)
    best, written = best_of(trials, stage.nothing, options.max_retain_drop), hash_file(file) if file.exists() else None
    for number in reporter.track(range(len(trials), options.trials), f"Tuning {name}"):
        values = propose(space, number, options.seed, defaults | best["values"] if best else None)
        trials.append(stage.attempt(given | values, number))
        best = best_of(trials, stage.nothing, options.max_retain_drop)
        found = {"values": best["values"], "scores": best["scores"]} if best else {"values": given, "scores": None}
        told = about | found | {"people": stage.people, "unseen_photos": stage.unseen, "nothing": stage.nothing, "trials": trials}
        written = on_main(accelerator, functools.partial(_write, file, told, written))
    if best is None:
        raise OneshuiError(f"None of {len(trials)} settings of method '{name}' worked; what each failed with was told as it happened.")
    if damage(best["scores"], stage.nothing) > options.max_retain_drop:
        reporter.warn(
            f"Every setting cost the others more than {options.max_retain_drop:g} points of score; the one that cost least is taken."
        )
    elif not best["scores"]["tow"] > stage.nothing["tow"]:
        reporter.warn(f"No setting was better than doing nothing (ToW {stage.nothing['tow']:.1f}, the best {best['scores']['tow']:.1f}).")
    return file


def _claim(file: Path, options: TuneOptions) -> None:
    """Check that the preset may be written, before anything takes long.

    Raises:
        UsageError: It may not: its name or its place is wrong, or a file is there that is neither to be gone on with nor to be replaced.
    """
    if options.resume and options.overwrite:
        raise UsageError("--resume goes on with a search and --overwrite replaces it; give one of them.")
    if file.suffix != ".json":
        raise UsageError(f"--output {file} must end in .json, by which --preset knows a file.")
    place = next(folder for folder in (file.parent, *file.absolute().parents) if folder.exists())
    if file.is_dir() or not place.is_dir() or not os.access(place, os.W_OK):
        raise UsageError(f"--output {file} cannot be written there; name another file.")
    if not file.exists():
        return
    if not (options.resume or options.overwrite):
        raise UsageError(f"{file} exists; go on with --resume, search anew with --overwrite, or name another --output.")
    if options.overwrite and "trials" not in read_object(file):
        raise UsageError(f"{file} is no preset, so --overwrite leaves it alone; name another --output.")


CHANGED = {
    "method_from": "version of the method",
    "dataset": "data set",
    "weights": "model",
    "given": "option of the method",
    "searched": "range of the method's options, or other options given",
    "judged_by": "--seed, --requests, --sample or --max-retain-drop",
}


def _earlier(file: Path, name: str, method_class: type[Method[Any]], about: dict[str, Any]) -> list[Trial]:
    """Return the trials of an interrupted search.

    Raises:
        UsageError: It was made with other settings.
    """
    earlier = read_preset(file, name, method_class)
    for key, words in CHANGED.items():
        if earlier.get(key) != json.loads(json.dumps(about[key])):
            raise UsageError(f"{file} was made with another {words}; search anew with --overwrite, or name another --output.")
    return list(earlier["trials"])


def _write(file: Path, told: dict[str, Any], written: str | None) -> str:
    """Write what is known so far over what this search wrote last, and return its hash.

    Raises:
        OneshuiError: Somebody else wrote meanwhile.
    """
    if (hash_file(file) if file.exists() else None) != written:
        raise OneshuiError(f"{file} was written by somebody else meanwhile; name another --output for one of two searches.")
    write_json(file, told)
    return hash_file(file)


def best_of(trials: list[Trial], nothing: Mapping[str, float], bound: float) -> Trial | None:
    """Return the trial with the highest ToW among those within the bound, else the one that did least damage; the earlier of equals."""
    worked = [trial for trial in trials if trial["scores"] is not None]
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
        reporter: Reporter,
    ) -> None:
        self.model, self.sets, self.rehearsals, self.options = model, sets, rehearsals, options
        self.unseen, self.method_class, self.context, self.reporter = unseen, method_class, context, reporter
        self.nothing = mean([rehearsal.nothing() for rehearsal in rehearsals])
        self.prepared: tuple[dict[str, Any], Artefact] | None = None  # the last one, with the options that it was made with

    @classmethod
    def open(cls, run: Run, options: TuneOptions, method_class: type[Method[Any]], accelerator: Accelerator, reporter: Reporter) -> _Stage:
        """Load model and data, and simulate the requests."""
        data = open_data(run, accelerator, options.data_dir, reporter)
        model, _, task = load_model(run.path, accelerator.device)
        sets = dict(data.sets)
        real = set(sets["forget"].identities.tolist())
        requests, unseen = _requests(sets["train"], real, run.request_size, options, reporter)
        asked = {person for request in requests for person in request.people}
        if not method_class.personal:
            # A method that simulates requests of its own, to learn from, must not learn from those that it is judged on. One that acts
            # on people one by one prepares for them, as it will for those who really ask.
            sets["train"] = dataclasses.replace(sets["train"], spared=sets["train"].spared | asked)
        context = Context(task, options.seed, accelerator, SILENT, request_size=len(requests[0].people))
        draws = generator(options.seed, "judging")
        train, val = sets["train"], sets["val"]
        rehearsals = [Rehearsal(model, train, val, request, context, draws, options.sample, besides=real) for request in requests]
        return cls(model, sets, rehearsals, unseen, options, method_class, context, reporter)

    @property
    def people(self) -> list[int]:
        """How many people ask in each request."""
        return [len(rehearsal.request.people) for rehearsal in self.rehearsals]

    def attempt(self, values: dict[str, Any], number: int) -> Trial:
        """Prepare and apply with these values, and return the mean scores over the requests.

        Raises:
            UsageError: The first setting, of what was given and the defaults, cannot be used at all.
        """
        name = self.options.method
        try:
            resolved = self.method_class.prepare_options(name, {}, values)
            artefact = self._prepare(resolved)
            scores = mean([rehearsal.judge(self._apply(rehearsal.request, artefact, resolved)) for rehearsal in self.rehearsals])
            if all(map(math.isfinite, scores.values())):
                return {"values": values, "scores": scores}
            reason: object = "the scores are not finite."
        except (OneshuiError, RuntimeError) as error:  # torch's errors are such; a setting may be out of bounds for this model
            if number == 0 and isinstance(error, UsageError):
                raise
            reason = error
        self.reporter.note(f"Setting {number + 1} failed: {reason}")
        return {"values": values, "scores": None}

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


def _requests(train: FaceSet, real: set[int], size: int, options: TuneOptions, reporter: Reporter) -> tuple[list[Simulated], bool]:
    """Return requests like the run's own, and whether their photos are unseen.

    Each is of as many people, and of different ones, none of whom asks in the real request.
    Half of those who can ask are left to methods that learn from simulated requests.
    """
    train = dataclasses.replace(train, spared=train.spared | real)
    unseen = train.reserved is not None and any(person not in train.spared for person in train.reserved.positions_of)
    if not unseen:
        reporter.warn("No photo is reserved in the split, so photos that the model was trained on are handed in; results will flatter.")
    people = sum(len(request.people) for request in simulate(train, (1, 1), generator(options.seed, "people"), unseen=unseen))
    most = max(1, people // 2)
    fit = min(size, most)
    drawn = simulate(train, (fit, fit), generator(options.seed, "people"), unseen=unseen)
    requests = [request for request in drawn if len(request.people) == fit][: min(options.requests, most // fit)]
    judged = f"Judging on {len(requests)} simulated request{'s' if len(requests) > 1 else ''} of {fit}, out of {people} people who can ask."
    if fit < size:
        reporter.warn(f"{judged} The run's own has {size}; train with a larger --reserve-supports to simulate such.")
    else:
        reporter.note(judged)
    return requests, unseen
