"""Unlearning: model, artefact and photos in, new model out. No training data in sight.

oneshui unlearn --method NAME --image face.jpg
oneshui unlearn --method NAME --from-split --run RUN
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator

from ..data.images import decode, to_pixels
from ..data.preprocess import Preprocess
from ..data.schema import Task
from ..errors import OneshuiError, UsageError, did_you_mean
from ..memory import Peak
from ..methods.artefact import Artefact
from ..methods.base import Context, DataAccess, Method
from ..methods.requests import Request
from ..models.load import load_model, save_model
from ..models.outputs import guess
from ..options import flag
from ..plugins import METHODS, Plugins
from ..reporting import SILENT, Reporter
from ..runs import SPLIT, Record, Run, claim, hash_weights, new_folder, write_bytes, write_record
from .command_options import UnlearnOptions
from .distributed import make_accelerator, on_main
from .identify import recognise_people
from .presets import acting, preset_values

if TYPE_CHECKING:
    from .run_data import RunData


def unlearn(
    run: Run,
    options: UnlearnOptions,
    method_options: Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    reporter: Reporter = SILENT,
    artefact: Path | None = None,
    vault: Path | None = None,
) -> Run:
    """Forget the people on the photos and write the new model as a run of its own.

    Args:
        run: The model.
        options: The request, and the method.
        method_options: The method's own.
        accelerator: For several processes.
        reporter: For progress.
        artefact: Where the method's artefact lies; in the run by default, or in the one that the method made it from.
        vault: Where the secrets of the artefact's people lie; the user's own vault by default.

    Raises:
        UsageError: Method, option, identity or label is unknown; no photo was given; the output folder is in the way.
        OneshuiError: A photo cannot be read, the artefact is for another model, or it is not certain who is on a photo and the method must
            know.
    """
    name, started = options.method, time.perf_counter()
    method_class: type[Method[Any]] = Plugins(METHODS).load(name)
    _check(options, method_class)
    path = Path(options.output_dir or f"{run.path}-{name}")
    claim(path, overwrite=options.overwrite, source=run.require_complete().path)
    found = _artefact(run, method_class, options, artefact, vault)
    prepared = (found.options if found else {}) | _preset(run, method_class, options, found, reporter)
    resolved = method_class.apply_options(name, prepared, method_options or {})

    accelerator = accelerator or make_accelerator()
    model, preprocess, task = load_model(run.path, accelerator.device)
    if options.from_split:
        from .run_data import open_data  # request time reads no data set, unless this run's own split is asked for

        data = open_data(run, accelerator, options.data_dir, reporter)
        granted: dict[str, Any] = data.sets | {"support": _split_request(run, data, accelerator)}
    else:
        granted = {"support": photo_request(options, model, preprocess, task, accelerator)}
    request: Request = granted["support"]
    found_by: dict[str, Any] = {"found_by": "name"} if method_class.personal else {}
    if method_class.personal and found and options.images and not options.identity:
        people, found_by = recognise_people(options.images, found, accelerator, reporter)
        granted["support"] = request = dataclasses.replace(request, people=people)

    context = Context(task, options.seed, accelerator, reporter, request_size=len(request))
    applying = time.perf_counter()
    with Peak(accelerator.device) as peak:
        unlearned = method_class().apply(model, DataAccess(granted, method_class.needs.apply), found, resolved, context)
    now = time.perf_counter()
    record = Record(
        kind="unlearned",
        seed=options.seed,
        options=run.record.options,  # of the training, so that the data is found; this request's own are in the report
        dataset=run.record.dataset,
        parent={"run": str(run.path.resolve()), "weights": run.record.weights},
        report={
            **_receipt(options, method_class, request),
            **found_by,
            "method_options": dataclasses.asdict(resolved),
            "prepared": found is not None,
            "split": run.record.report.get("split"),
            "seconds": round(now - applying, 3),
            "seconds_in_all": round(now - started, 3),
            "peak_mb": peak.mb,
            **context.report,
            "destroyed": 0,
        },
    )
    on_main(accelerator, lambda: _write(path, run, unlearned, preprocess, record, options.overwrite))
    if found and not _keeps(options):
        on_main(accelerator, lambda: _destroy(path, record, found, request, reporter))
    return Run.open(path)


def _preset(
    run: Run, method_class: type[Method[Any]], options: UnlearnOptions, artefact: Artefact | None, reporter: Reporter
) -> dict[str, Any]:
    """Return the values of a preset that act at the request, and tell of those that act when preparing and were not prepared with."""
    values = preset_values(run, options.method, method_class, options.preset, reporter)
    ours = acting(method_class, values, "apply")
    prepared = artefact.options if artefact else {}
    if other := [flag(key) for key, value in values.items() if key not in ours and (artefact is None or prepared.get(key) != value)]:
        found = "was prepared with other values" if artefact else "is not prepared"
        reporter.warn(
            f"Method '{options.method}' {found}, and {', '.join(other)} of the preset act when preparing; "
            f"they are left out (`oneshui prepare --preset {options.preset}` takes them)."
        )
    return ours


def _check(options: UnlearnOptions, method_class: type[Method[Any]]) -> None:
    if bool(options.images) == options.from_split:
        raise UsageError("Hand in the photo with --image FILE, or take the split's own request with --from-split.")
    if options.images and options.data_dir:
        raise UsageError("--data-dir goes with --from-split; a photo that is handed in needs no data set.")
    if options.images and not method_class.needs.one_shot:
        reads = ", ".join(sorted(method_class.needs.apply - {"support"}))
        raise UsageError(f"Method '{options.method}' reads {reads} at request time, so one photo is not enough; run it with --from-split.")


def _receipt(options: UnlearnOptions, method_class: type[Method[Any]], request: Request) -> dict[str, Any]:
    """Return what is kept of a request: how many, how, never who."""
    named = {person for person in request.people if person is not None}
    unnamed = request.people.count(None)
    return {
        "method": options.method,
        "method_from": Plugins(METHODS).origin(options.method),
        "photos": len(request),
        # Several photos without a name may show one person or several.
        "people": len(named) + unnamed if unnamed <= 1 else None,
        "labels": "given" if request.labels_given else "guessed by the model",
        "reads": sorted(method_class.needs.apply),
        "source": "split" if options.from_split else "photos handed in",
        "forced": options.force,
    }


def _artefact(
    run: Run, method_class: type[Method[Any]], options: UnlearnOptions, folder: Path | None, vault: Path | None
) -> Artefact | None:
    if method_class.prepares == "never":
        return None
    if folder is None:
        run = _prepared_for(run, options.method) if method_class.sequential else run
        folder = run.artefact(options.method)
    if method_class.prepares == "optional" and not folder.exists():
        return None
    return Artefact.load(folder, options.method, run.weights, force=options.force, vault=vault)


def _prepared_for(run: Run, method: str) -> Run:
    """Return the model that a method was prepared for: this one, or the nearest of those that the method alone has made it from.

    This one, too, where nothing was prepared: it is the one to name then.

    Raises:
        UsageError: A model in between is not where it was, or is another one by now.
    """
    found = run
    while not found.artefact(method).is_dir():
        parent = found.record.parent or {}
        if found.record.kind != "unlearned" or found.record.report.get("method") != method or "run" not in parent:
            return run
        place = Path(str(parent["run"]))
        if not place.is_dir() or Run.open(place).weights != parent.get("weights"):
            raise UsageError(f"{found.path} was made from {place}, which is gone or has changed, so what '{method}' prepared is not found.")
        found = Run.open(place)
    return found


def _keeps(options: UnlearnOptions) -> bool:
    """Whether what was prepared for those who ask stays: experiments repeat a split's request, a person asks once."""
    return options.from_split if options.keep is None else options.keep


def _destroy(path: Path, record: Record, artefact: Artefact, request: Request, reporter: Reporter) -> None:
    """Destroy what was prepared for those who asked, and tell in the receipt of how many.

    The new model is written by now: a failure leaves it as it is and is a warning. The receipt never tells of more than was destroyed.
    """
    for person in sorted({person for person in request.people if person is not None}):
        try:
            record.report["destroyed"] += artefact.destroy(person)
        except OneshuiError as error:
            reporter.warn(f"What was prepared for one of those who asked is still there. {error}")
    if record.report["destroyed"]:
        write_record(path, record)
        reporter.note(f"Destroyed what was prepared for {record.report['destroyed']} of those who asked.")


def photo_request(options: UnlearnOptions, model: torch.nn.Module, preprocess: Preprocess, task: Task, accelerator: Accelerator) -> Request:
    """Read the photos handed in."""
    photos = len(options.images)
    pixels = np.stack([to_pixels(decode(image), preprocess.size) for image in options.images])
    ready = preprocess(torch.from_numpy(pixels).to(accelerator.device))
    people = _each(options.identity, photos, "--identity") or (None,) * photos
    given = _each(options.labels, photos, "--labels")
    if given:
        labels = torch.stack([parse_labels(text, task) for text in given]).to(accelerator.device)
    else:
        with torch.inference_mode():
            labels = guess(model(pixel_values=ready).logits, task.kind)
        labels = labels.clone()  # an inference tensor could not be saved for a gradient
    return Request(ready, people, labels, bool(given))


def _each(values: Sequence[str], photos: int, flag: str) -> tuple[str, ...]:
    if len(values) not in (0, 1, photos):
        raise UsageError(f"{flag} is given {len(values)} times for {photos} photos; give it once, or once a photo.")
    return tuple(values) * photos if len(values) == 1 else tuple(values)


def parse_labels(text: str, task: Task) -> torch.Tensor:
    """Read 'Smiling,Young' (all others do not hold) or a class name.

    Raises:
        UsageError: A label is unknown.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in task.label_names:
            raise UsageError(f"The model has no label '{word}'.{did_you_mean(word, task.label_names)}")
    if task.kind == "multi_label":
        return torch.tensor([float(name in words) for name in task.label_names])
    if len(words) != 1:
        raise UsageError(f"This model gives each photo one class, so --labels takes one, not '{text}'.")
    return torch.tensor(task.label_names.index(words[0]))


def _split_request(run: Run, data: RunData, accelerator: Accelerator) -> Request:
    """Return the split's own request: the support images, with identities and labels as the data set has them.

    To an oracle, which is asked to forget them so that attackers can compare, those who ask are strangers without a name.
    """
    support = data.sets["support"]
    pixels, labels = support.batch(torch.arange(len(support)), accelerator.device)
    strangers = run.record.kind == "oracle"
    people = tuple(None if strangers else support.people[number] for number in support.identities.tolist())
    return Request(pixels, people, labels, labels_given=True, strangers=strangers)


def _write(path: Path, run: Run, model: torch.nn.Module, preprocess: Preprocess, record: Record, overwrite: bool) -> None:
    with new_folder(path, replace=overwrite) as scratch:
        save_model(model, preprocess, scratch)
        record.weights = hash_weights(scratch)
        split = run.path / SPLIT
        if split.exists():
            write_bytes(scratch / SPLIT, split.read_bytes())
        write_record(scratch, record)
