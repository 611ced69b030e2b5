"""Unlearning: compute a new model from a model, an artefact and support images, without training data.

oneshui unlearn --method NAME --image face.jpg
oneshui unlearn --method NAME --from-split --run RUN
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator

from ..data.image_modes import NEARLY_CONSTANT, is_nearly_constant
from ..data.images import decode, to_pixels
from ..data.preprocess import Preprocess
from ..data.schema import Task
from ..files import new_folder, write_bytes
from ..memory import PeakMemory
from ..methods.artefact import Artefact
from ..methods.base import Context, DataAccess, Method
from ..methods.identity_store import artefact_id, discard_with_secrets
from ..methods.requests import Request
from ..models.load import load_model, save_model
from ..models.outputs import losses, predicted_labels, require_finite_logits
from ..plugins import METHODS, Plugins
from ..processes import locked_output, on_main
from ..reporting import SILENT, Reporter
from ..runs import DESTRUCTION, RECORD, SPLIT, Record, Run, hash_settings, hash_weights, require_writable, write_record
from ..runs import METHODS as ARTEFACTS
from ..vault import vault_root
from .checks import check_applied_method, check_unlearn, named_labels, per_photo
from .command_options import UnlearnOptions
from .distributed import make_accelerator
from .identify import identify_people
from .method_call import load_artefact, preset_values_at_request, receipt
from .method_choice import nearest_prepared_run, with_method
from .photo_range import PHOTO_RANGE, UNLIKE, unlike_photos
from .recovery import (
    clear_killed_work,
    complete_destruction,
    find_entries,
    remove_resume_states,
    request_lock,
    write_journal,
    write_pointers,
)
from .unseen_range import LOSS, RANGE

if TYPE_CHECKING:
    from PIL.Image import Image

    from .run_data import RunData


@dataclasses.dataclass(frozen=True)
class SupportPhoto:
    """A decoded support image.

    Attributes:
        photo: The photo, in its full size.
        identity: The identity on it, if it is known.
    """

    photo: Image
    identity: str | None = dataclasses.field(repr=False)  # a repr may be logged


def unlearn(
    run: Run,
    options: UnlearnOptions,
    method_options: Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    reporter: Reporter = SILENT,
    artefact: Path | None = None,
    vault: Path | None = None,
    support: Sequence[SupportPhoto] | None = None,
) -> Run:
    """Unlearn the identities of a request and write the new model as a run.

    Args:
        run: The model.
        options: The request and the method.
        method_options: Options of the method.
        accelerator: For several processes.
        reporter: For progress.
        artefact: Folder of the method's artefact; by default in the run, or in the run from which the method computed it.
        vault: Folder of the secrets of the artefact's per-identity data; the user's vault by default.
        support: The support images, where they are not files; `options.images` then only names them in messages.

    Raises:
        UsageError: Method, option, identity or label is unknown; no photo was given; the output folder exists.
        OneshuiError: A photo cannot be read, the artefact belongs to another model, or the method needs to know the identity on a photo and
            it is not certain; another process writes the output, or prepares a method for a run whose data the request destroys.
    """
    started = time.perf_counter()
    options = with_method(run, options, method_options, reporter)
    method_class: type[Method[Any]] = Plugins(METHODS).load(options.method_name)
    path, vault = check_unlearn(run, options, files=support is None), vault or vault_root()
    accelerator = accelerator or make_accelerator()
    on_main(accelerator, lambda: clear_killed_work(run.path, path, vault=vault, reporter=reporter))
    with locked_output(path, accelerator, discard_with_secrets(vault, run.path), "--output-dir"), contextlib.ExitStack() as held:
        require_writable(path, overwrite=options.overwrite, source=run.path)  # another process may have written it meanwhile
        is_inherited = method_class.sequential and artefact is None
        complete = run.require_complete()
        owner = complete if artefact else nearest_prepared_run(complete, options.method_name, method_class)
        folder = artefact or owner.artefact(options.method_name)
        lineage = [run.path, owner.path, *_runs_with_copies(owner, options.method_name)]
        runs = [] if _keeps_identity_data(options) else lineage  # where the person's data is destroyed
        on_main(accelerator, lambda: held.enter_context(request_lock(runs)))
        found = _compute(run, owner, options, method_options or {}, accelerator, reporter, folder, vault, support)
        request, prepared, context = found.request, found.prepared, found.context
        record = Record(
            kind="unlearned",
            seed=options.seed,
            options=run.record.options,  # the training options, to find the data; the options of this request are in the report
            dataset=run.record.dataset,
            parent={"run": str(run.path.resolve()), "weights": run.record.weights},
            split=run.record.split,
            report=found.report | {"seconds_in_all": round(time.perf_counter() - started, 3), "destroyed": 0},
        )

        def write() -> None:
            named = {person for person in request.people if person is not None}
            identities = find_entries([*runs, folder] if runs else [], named, vault, reporter)
            pointers: list[Path] = []
            with new_folder(path, replace=options.overwrite, private=True, discard=discard_with_secrets(vault, run.path)) as scratch:
                _write_run(scratch, run, found.unlearned, found.preprocess, record)
                if is_inherited and context.successor is not None and prepared is not None:
                    target = scratch / ARTEFACTS / options.method_name
                    context.successor.save_successor(target, prepared, options.method_name, str(record.weights), named)
                if identities:
                    pointers = write_pointers(runs, path)
                    write_journal(scratch, record.weights, identities, vault)
                if named:
                    remove_resume_states(runs, reporter)
            if identities and (destroyed := complete_destruction(path, vault, reporter)):
                reporter.note(f"Destroyed the data prepared for {destroyed} of the requested identities.")
            if not (path / DESTRUCTION).exists():
                for pointer in pointers:
                    pointer.unlink(missing_ok=True)

        on_main(accelerator, write)
    return Run.open(path)


@dataclasses.dataclass(frozen=True)
class Unlearned:
    """The outcome of a request, before anything is written.

    Attributes:
        model: The model before.
        unlearned: The model after.
        preprocess: The preprocessing of both.
        request: The support images with their labels and identities.
        prepared: The artefact that the method has used; None without one.
        context: The method's context, with what it reported.
        report: The entries of the receipt.
    """

    model: torch.nn.Module
    unlearned: torch.nn.Module
    preprocess: Preprocess
    request: Request
    prepared: Artefact | None
    context: Context
    report: dict[str, Any]


def compute_unlearned(
    run: Run,
    options: UnlearnOptions,
    method_options: Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    reporter: Reporter = SILENT,
    vault: Path | None = None,
    support: Sequence[SupportPhoto] | None = None,
) -> Unlearned:
    """Compute the new model of a request as `unlearn` does, and write nothing.

    Args:
        run: The model.
        options: The request, and the method by its name.
        method_options: Options of the method.
        accelerator: For several processes.
        reporter: For progress.
        vault: Folder of the secrets; the user's vault by default.
        support: The support images, where they are not files.

    Raises:
        UsageError: As `unlearn`, except for the output folder.
        OneshuiError: As `unlearn`.
    """
    method_class: type[Method[Any]] = Plugins(METHODS).load(options.method_name)
    check_applied_method(options, method_options)
    owner = nearest_prepared_run(run.require_complete(), options.method_name, method_class)
    folder = owner.artefact(options.method_name)
    where = accelerator or make_accelerator()
    return _compute(run, owner, options, method_options or {}, where, reporter, folder, vault or vault_root(), support)


def _compute(
    run: Run,
    owner: Run,
    options: UnlearnOptions,
    method_options: Mapping[str, Any],
    accelerator: Accelerator,
    reporter: Reporter,
    folder: Path,
    vault: Path,
    support: Sequence[SupportPhoto] | None,
) -> Unlearned:
    """Read model, artefact and request, and apply the method."""
    method_class: type[Method[Any]] = Plugins(METHODS).load(options.method_name)
    prepared = load_artefact(owner, method_class, options, folder, vault)
    earlier = (prepared.options if prepared else {}) | preset_values_at_request(run, method_class, options, prepared, reporter)
    resolved = method_class.apply_options(options.method_name, earlier, method_options)

    model, preprocess, task = load_model(run.path, accelerator.device)
    loaded = model, preprocess, task
    granted, identification = _read_request(run, options, method_class, prepared, loaded, accelerator, reporter, support)
    request: Request = granted["support"]
    context = Context(task, options.seed, accelerator, reporter, request_size=len(request))
    applying = time.perf_counter()
    with PeakMemory(accelerator.device) as peak:
        unlearned = method_class().apply(model, DataAccess(granted, method_class.needs.apply), prepared, resolved, context)
    report = {
        **receipt(options, method_class, request),
        **identification,
        "method_options": dataclasses.asdict(resolved),
        "prepared": prepared is not None,
        "split": run.record.report.get("split"),
        "seconds": round(time.perf_counter() - applying, 3),
        "peak_mb": peak.mb,
        RANGE: run.record.report.get(RANGE),
        LOSS: {"before": _losses(model, request, task), "after": _losses(unlearned, request, task)},
        **context.report,
    }
    return Unlearned(model, unlearned, preprocess, request, prepared, context, report)


def _read_request(
    run: Run,
    options: UnlearnOptions,
    method_class: type[Method[Any]],
    prepared: Artefact | None,
    loaded: tuple[torch.nn.Module, Preprocess, Task],
    accelerator: Accelerator,
    reporter: Reporter,
    support: Sequence[SupportPhoto] | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the sets that the method may read, of which "support" is the request, and the receipt's entries about identification."""
    model, preprocess, task = loaded
    identification: dict[str, Any] = {"found_by": "name"} if method_class.per_identity else {}
    if options.from_split:
        from .run_data import open_data  # a request reads a data set only if it is the split's own

        data = open_data(run, accelerator, options.data_dir, reporter)
        return data.sets | {"support": _request_from_split(run, data, accelerator)}, identification
    if support is None:
        named = per_photo(options.identity, len(options.images), "--identity") or (None,) * len(options.images)
        support = [SupportPhoto(decode(image), person) for image, person in zip(options.images, named, strict=True)]
    photos, people = [one.photo for one in support], tuple(one.identity for one in support)
    _warn_constant(options.images, photos, reporter)
    labels = _given_labels(options, task)
    if method_class.per_identity and prepared and None in people:
        people, identification = identify_people(photos, prepared, options.face_encoder, accelerator, reporter)
    request = _request_from_photos(photos, people, labels, model, preprocess, task, accelerator)
    return {"support": request}, identification | _unlike_photos(run, options.images, photos, preprocess.size, reporter)


def _runs_with_copies(run: Run, method: str) -> Iterator[Path]:
    """Yield the earlier runs from whose artefact of a method that of this run was carried over (`Context.successor`)."""
    artefact, found, seen = artefact_id(run.artefact(method)), run, set[Path]()
    while artefact is not None and found.record.kind == "unlearned" and found.path not in seen:
        seen.add(found.path)
        earlier = Path(str((found.record.parent or {}).get("run")))
        if artefact_id(earlier / ARTEFACTS / method) != artefact or not (earlier / RECORD).is_file():
            return
        yield earlier
        found = Run.open(earlier)


def _keeps_identity_data(options: UnlearnOptions) -> bool:
    """Whether per-identity data is kept. By default it is kept with --from-split only, since experiments repeat the split's request."""
    return options.from_split if options.keep is None else options.keep


def _warn_constant(names: Sequence[str], photos: Sequence[Image], reporter: Reporter) -> None:
    """Warn about photos that show nothing."""
    for name, photo in zip(names, photos, strict=True):
        if is_nearly_constant(to_pixels(photo, 64)):
            reporter.warn(f"{name} {NEARLY_CONSTANT}")


def _unlike_photos(
    run: Run,
    names: Sequence[str],
    photos: Sequence[Image],
    size: int,
    reporter: Reporter,
) -> dict[str, Any]:
    """Warn about photos unlike all photos of unseen identities, and return the receipt's entries; empty if the run has no range of them."""
    pixels = torch.from_numpy(np.stack([to_pixels(photo, size) for photo in photos]))
    unlike = unlike_photos(pixels, run.record.report)
    if unlike is None:
        return {}
    for name, is_unlike in zip(names, unlike, strict=True):
        if is_unlike:
            reporter.warn(
                f"{name} is unlike all photos that the model was tried on, and may show no face: check it, since the losses show little."
            )
    return {PHOTO_RANGE: run.record.report[PHOTO_RANGE], UNLIKE: unlike}


def _request_from_photos(
    photos: Sequence[Image],
    people: tuple[str | None, ...],
    labels: torch.Tensor | None,
    model: torch.nn.Module,
    preprocess: Preprocess,
    task: Task,
    accelerator: Accelerator,
) -> Request:
    """Return the request of decoded photos. Without labels, the model predicts them."""
    pixels = np.stack([to_pixels(photo, preprocess.size) for photo in photos])
    inputs = preprocess(torch.from_numpy(pixels).to(accelerator.device))
    if labels is not None:
        return Request(inputs, people, labels.to(accelerator.device), labels_given=True)
    with torch.no_grad():
        predicted = predicted_labels(require_finite_logits(model(pixel_values=inputs).logits), task.kind)
    return Request(inputs, people, predicted.clone(), labels_given=False)  # cloned: autograd cannot save an inference tensor


def _losses(model: torch.nn.Module, request: Request, task: Task) -> list[float | None]:
    """Return the loss of each support image under a model; None where it is not finite."""
    training = model.training
    model.eval()
    with torch.no_grad():
        found = losses(model(pixel_values=request.pixels).logits, request.labels, task.kind).tolist()
    model.train(training)
    return [loss if math.isfinite(loss) else None for loss in found]


def _given_labels(options: UnlearnOptions, task: Task) -> torch.Tensor | None:
    named = named_labels(options, task.label_names, one_class=task.kind == "single_label")
    return torch.stack([_label_tensor(names, task) for names in named]) if named else None


def _label_tensor(names: Sequence[str], task: Task) -> torch.Tensor:
    """Return the labels with these names as a method reads them: one number per label, or the number of the class."""
    if task.kind == "multi_label":
        return torch.tensor([float(name in names) for name in task.label_names])
    return torch.tensor(task.label_names.index(names[0]))


def _request_from_split(run: Run, data: RunData, accelerator: Accelerator) -> Request:
    """Return the split's own request: the support images with their identities and labels.

    An oracle runs the same request, so that attacks can compare. It was not trained on these identities, so they have no name.
    """
    support = data.sets["support"]
    pixels, labels = support.batch(torch.arange(len(support)), accelerator.device)
    unseen = run.record.kind == "oracle"
    people = tuple(None if unseen else support.people[number] for number in support.identities.tolist())
    return Request(pixels, people, labels, labels_given=True, unseen_identities=unseen)


def _write_run(folder: Path, run: Run, model: torch.nn.Module, preprocess: Preprocess, record: Record) -> None:
    save_model(model, preprocess, folder)
    record.weights, record.settings = hash_weights(folder), hash_settings(folder)
    split = run.path / SPLIT
    if split.exists():
        write_bytes(folder / SPLIT, split.read_bytes(), private=True)
    write_record(folder, record)
