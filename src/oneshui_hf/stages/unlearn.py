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

from ..data.image_modes import is_nearly_constant
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
from ..options import current_names, flag
from ..plugins import METHODS, Plugins
from ..processes import locked_output, on_main
from ..reporting import SILENT, Reporter
from ..runs import DESTRUCTION, RECORD, SPLIT, Record, Run, hash_weights, require_writable, write_record
from ..runs import METHODS as ARTEFACTS
from ..vault import vault_root
from .checks import check_unlearn, named_labels, per_photo
from .command_options import UnlearnOptions
from .distributed import make_accelerator
from .identify import identify_people
from .method_choice import nearest_prepared_run, with_method
from .presets import preset_values, values_for_step
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
        owner = nearest_prepared_run(run.require_complete(), options.method_name) if is_inherited else run.require_complete()
        folder = artefact or owner.artefact(options.method_name)
        lineage = [run.path, owner.path, *_runs_with_copies(owner, options.method_name)]
        runs = [] if _keeps_identity_data(options) else lineage  # where the person's data is destroyed
        on_main(accelerator, lambda: held.enter_context(request_lock(runs)))
        prepared = _load_artefact(owner, method_class, options, folder, vault)
        earlier = (prepared.options if prepared else {}) | _preset_values(run, method_class, options, prepared, reporter)
        resolved = method_class.apply_options(options.method_name, earlier, method_options or {})

        model, preprocess, task = load_model(run.path, accelerator.device)
        loaded = model, preprocess, task
        granted, identification = _read_request(run, options, method_class, prepared, loaded, accelerator, reporter, support)
        request: Request = granted["support"]
        context = Context(task, options.seed, accelerator, reporter, request_size=len(request))
        applying = time.perf_counter()
        with PeakMemory(accelerator.device) as peak:
            unlearned = method_class().apply(model, DataAccess(granted, method_class.needs.apply), prepared, resolved, context)
        now = time.perf_counter()
        record = Record(
            kind="unlearned",
            seed=options.seed,
            options=run.record.options,  # the training options, to find the data; the options of this request are in the report
            dataset=run.record.dataset,
            parent={"run": str(run.path.resolve()), "weights": run.record.weights},
            split=run.record.split,
            report={
                **_receipt(options, method_class, request),
                **identification,
                "method_options": dataclasses.asdict(resolved),
                "prepared": prepared is not None,
                "split": run.record.report.get("split"),
                "seconds": round(now - applying, 3),
                "seconds_in_all": round(now - started, 3),
                "peak_mb": peak.mb,
                RANGE: run.record.report.get(RANGE),
                LOSS: {"before": _losses(model, request, task), "after": _losses(unlearned, request, task)},
                **context.report,
                "destroyed": 0,
            },
        )

        def write() -> None:
            named = {person for person in request.people if person is not None}
            identities = find_entries([*runs, folder] if runs else [], named, vault, reporter)
            pointers: list[Path] = []
            with new_folder(path, replace=options.overwrite, private=True, discard=discard_with_secrets(vault, run.path)) as scratch:
                _write_run(scratch, run, unlearned, preprocess, record)
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
    return {"support": _request_from_photos(photos, people, labels, model, preprocess, task, accelerator)}, identification


def _preset_values(
    run: Run, method_class: type[Method[Any]], options: UnlearnOptions, artefact: Artefact | None, reporter: Reporter
) -> dict[str, Any]:
    """Return the preset values that `apply` reads. Warn about values that `prepare` reads and that differ from the artefact's options."""
    name = options.method_name
    values = preset_values(run, name, method_class, options.preset, reporter)
    used = values_for_step(method_class, values, "apply")
    prepared = artefact.options if artefact else {}
    if ignored := [flag(key) for key, value in values.items() if key not in used and (artefact is None or prepared.get(key) != value)]:
        reason = "was prepared with other values" if artefact else "is not prepared"
        reporter.warn(
            f"Method '{name}' {reason}, and the preset's {', '.join(ignored)} apply to preparation only, so they are ignored; "
            f"`oneshui prepare --preset {options.preset}` uses them."
        )
    return used


def _receipt(options: UnlearnOptions, method_class: type[Method[Any]], request: Request) -> dict[str, Any]:
    """Return the stored facts of a request: numbers and settings, never a name."""
    named = {person for person in request.people if person is not None}
    unnamed = request.people.count(None)
    return {
        "method": options.method_name,
        "method_from": Plugins(METHODS).origin(options.method_name),
        "photos": len(request),
        # Several photos without a name may show one person or several, so their number is unknown.
        "people": len(named) + unnamed if unnamed <= 1 else None,
        "labels": "given" if request.labels_given else "guessed by the model",
        "reads": sorted(method_class.needs.apply),
        "source": "split" if options.from_split else "photos handed in",
        "forced": options.force,
    }


def _load_artefact(owner: Run, method_class: type[Method[Any]], options: UnlearnOptions, folder: Path, vault: Path) -> Artefact | None:
    """Return the artefact of a run's model with its options under their current names; None if the method runs without one."""
    if method_class.prepares == "never" or (method_class.prepares == "optional" and not folder.exists()):
        return None
    artefact = Artefact.load(folder, options.method_name, owner.weights, force=options.force, vault=vault)
    artefact.options = current_names(method_class.options, artefact.options)
    return artefact


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
            reporter.warn(f"{name} has nearly the same colour everywhere and may show nobody.")


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
    record.weights = hash_weights(folder)
    split = run.path / SPLIT
    if split.exists():
        write_bytes(folder / SPLIT, split.read_bytes(), private=True)
    write_record(folder, record)
