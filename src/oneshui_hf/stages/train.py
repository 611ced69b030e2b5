"""Training: the original model on all training identities, and the oracle on the retain identities.

    oneshui train --dataset celeba --data-dir DIR --forget 5
    oneshui retrain --run RUN
    accelerate launch -m oneshui_hf train ...

Both use the same recipe. The oracle starts from the same pretrained backbone and the same randomly initialised head, uses the same split
without the forget identities, and draws its own order of photos. It never starts from the original model's weights. With the same seed,
the oracle of a sharded model reuses the shards without forget identities: training them again would give the same weights (`shards`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from ..data.face_set import face_sets
from ..data.identity_labels import LABELS_NAME_PEOPLE, describe_identity_labels, describe_labels, labels_of_one_identity, names_people
from ..data.load import load_faces, usual_data_dir
from ..data.pixels import load_pixels
from ..data.preprocess import Preprocess
from ..data.schema import Faces
from ..data.split import Split, load_split, make_split, split_summary
from ..desk.suppression import Suppression, find_forgotten
from ..errors import NotResumableError, UsageError
from ..files import new_folder
from ..methods.identity_store import discard_with_secrets
from ..models.load import save_model
from ..models.new import new_model
from ..options import flag
from ..plugins import DATASETS, Plugins
from ..processes import on_main
from ..public_names import TINY
from ..reporting import SILENT, Reporter
from ..runs import SPLIT, Kind, Record, Run, hash_settings, hash_weights, write_record
from ..vault import vault_root
from .checks import check_retrain, check_train, open_interrupted
from .command_options import DEFAULT_MODEL, RetrainOptions, SplitOptions, TrainOptions
from .distributed import check_divided_training, make_accelerator, precision_note, with_launch_settings
from .photo_range import measure_photo_range
from .publishing.after_training import check_destination, check_labels, push_trained
from .recovery import locked_run
from .run_data import training_options
from .tracking import NONE, tracked, training_config
from .training import checkpoint
from .training.closed_form import closed_form_models, fit_closed_form
from .training.divided import divides_model
from .training.loop import fit
from .training.optimization import check_model
from .training.phases import FOLDER as PROFILE
from .training.recipe import CLOSED_FORM
from .training.shards import Shards
from .unseen_range import measure_unseen_range

LEFT_OUT = "forgotten_left_out"  # key of the report
OF_A_CALL = {"resume", "overwrite", "output_dir", "push_to_hub", "save_steps", "profile"}  # options that --resume may change


def train(options: TrainOptions, accelerator: Accelerator | None = None, reporter: Reporter = SILENT) -> Run:
    """Train the original model on all training identities, and publish it if `--push-to-hub` is given.

    Raises:
        UsageError: An option is wrong or the output folder exists, or nobody is logged in to the Hub.
        OneshuiError: The data cannot be used, another process is writing the folder, or the loss is no longer finite.
        NotResumableError: The run to resume is damaged, or its data has changed.
    """
    path = check_train(options)
    accelerator = accelerator or make_accelerator(training=True)
    repo_id = options.push_to_hub
    if repo_id is not None:
        on_main(accelerator, lambda: check_destination(repo_id))
    run = _train_original(path, options, accelerator, reporter)
    if repo_id is not None:
        on_main(accelerator, lambda: push_trained(run, repo_id, reporter))
    return Run.open(path)


def _train_original(path: Path, options: TrainOptions, accelerator: Accelerator, reporter: Reporter) -> Run:
    with locked_run(path, accelerator, reporter, "--output-dir"):
        on_main(accelerator, lambda: check_train(options))  # another process may have written the folder meanwhile
        report_to, options = options.report_to, dataclasses.replace(options, report_to=NONE)  # of this call, not of the recipe
        interrupted = open_interrupted(path, "original", options) if options.resume else None
        if interrupted is not None:
            options = _stored_options(interrupted, options)
            if _has_finished(interrupted, reporter):
                return interrupted
        options = _with_launch_settings(options, accelerator, reporter, fixed=interrupted is not None)
        with tracked(report_to, path, training_config(dataclasses.asdict(options)), accelerator, reporter) as tracking:
            return _train(path, "original", options, options.seed, None, interrupted, accelerator, tracking)


def retrain(original: Run, options: RetrainOptions, accelerator: Accelerator | None = None, reporter: Reporter = SILENT) -> Run:
    """Train the oracle: the original's recipe and split, on the retain identities only.

    For a sharded original, only shards with forget identities are trained, unless the seed differs or the data has changed.

    Raises:
        UsageError: The run is not a finished original model, or the output folder exists.
        OneshuiError: Another process is writing the folder, or replaces the original; or the loss is no longer finite.
        NotResumableError: The run to resume is damaged, its data has changed, or it is the oracle of another original.
    """
    path = check_retrain(original, options)
    original.require_complete()
    accelerator = accelerator or make_accelerator(training=True)
    recipe = training_options(original)
    seed = recipe.seed if options.seed is None else options.seed
    with locked_run(path, accelerator, reporter, "--output-dir"):
        on_main(accelerator, lambda: check_retrain(original, options))
        interrupted = open_interrupted(path, "oracle", options) if options.resume else None
        if interrupted is not None:
            if _has_finished(interrupted, reporter):
                return interrupted
            _require_parent(interrupted, original)
            seed = interrupted.record.seed
        recipe = dataclasses.replace(recipe, data_dir=options.data_dir or recipe.data_dir, resume=options.resume, output_dir=str(path))
        recipe = _with_launch_settings(recipe, accelerator, reporter, fixed=True)
        config = training_config(dataclasses.asdict(recipe)) | {"seed": seed}
        with tracked(options.report_to, path, config, accelerator, reporter) as tracking:
            return _train(path, "oracle", recipe, seed, original, interrupted, accelerator, tracking)


def _with_launch_settings(options: TrainOptions, accelerator: Accelerator, reporter: Reporter, *, fixed: bool) -> TrainOptions:
    """Return a recipe with the settings of the launch; a fixed one has its own, and only contradictions are reported.

    Raises:
        UsageError: They exclude each other.
    """
    configured, notes = with_launch_settings(options)
    for note in notes:
        reporter.note(note)
    options = options if fixed else configured
    if divides_model(accelerator):
        check_divided_training(options)
    return options


def _require_parent(interrupted: Run, original: Run) -> None:
    """Check that an interrupted oracle belongs to an original.

    Raises:
        NotResumableError: It was started for another one.
    """
    if (interrupted.record.parent or {}).get("weights") != original.weights:
        raise NotResumableError(
            f"{interrupted.path} was started for another model than the one in {original.path}; name another --output-dir, or start again "
            "with --overwrite."
        )


def _has_finished(run: Run, reporter: Reporter) -> bool:
    """Whether the run that `--resume` names needs no more training."""
    if run.record.state == "complete":
        reporter.note(f"{run.path} has already finished training.")
    return run.record.state == "complete"


def _stored_options(run: Run, options: TrainOptions) -> TrainOptions:
    """Return the options of an interrupted run.

    Raises:
        UsageError: An option was given again with another value.
    """
    stored = training_options(run)
    given = _absolute(options)
    for field in dataclasses.fields(TrainOptions):
        new, old = getattr(given, field.name), getattr(stored, field.name)
        if field.name not in OF_A_CALL and new != field.default and new != old:
            raise UsageError(f"{flag(field.name)} {new} differs from the {old} of the interrupted run; --resume keeps its options.")
    of_this_call = {name: getattr(options, name) for name in OF_A_CALL - {"overwrite"} if getattr(options, name)}
    return dataclasses.replace(stored, **of_this_call | {"resume": True, "output_dir": str(run.path)})


def _train(
    path: Path,
    kind: Kind,
    options: TrainOptions,
    seed: int,
    original: Run | None,
    interrupted: Run | None,
    accelerator: Accelerator,
    reporter: Reporter,
) -> Run:
    with accelerator.main_process_first():  # one process builds the caches, the others read them
        faces = load_faces(**options.source(), reporter=reporter)
        name = backbone_name(options, faces)
        model, preprocess = new_model(name, faces.task, options.image_size, options.seed, options.model_revision, reporter)
        if original is not None:  # it may have been trained by a version that reads the checkpoint's processor otherwise
            preprocess = Preprocess.load(original.path)
        precision = None if original else precision_note(accelerator.device, bf16=options.bf16, fp16=options.fp16)
        for note in (*faces.exclusions.messages(), *preprocess.notes, *filter(None, [precision])):
            reporter.note(note)
        faces, pixels = load_pixels(faces, preprocess.size, reporter)
        split, left_out = _split(faces, options, original, interrupted, reporter)
        sets = face_sets(faces, pixels, split, preprocess)
    reporter.info(f"{len(faces)} photos of {len(faces.people)} identities; {len(split.forget)} in the forget set.")
    reporter.note(describe_labels(faces))
    of_one = labels_of_one_identity(faces)
    if options.push_to_hub is not None:
        check_labels(faces.task.label_names, faces.people, is_people=names_people(faces, of_one))
    if original is None and (problem := describe_identity_labels(faces, of_one)):
        reporter.warn(problem)

    # The stored options reproduce the run: the model's name and the paths are resolved, and options of this call only are reset.
    stored = dataclasses.replace(
        options,
        model=name,
        image_size=preprocess.size,
        forget=len(split.forget),
        reserve_supports=len(split.reserved),
        meta_identities=split.meta_identities,
        resume=False,
        profile=False,
        overwrite=False,
        output_dir=None,
        push_to_hub=None,
        download=False,
        data_dir=options.data_dir or _found_data_dir(options),
    )
    record = Record(
        kind=kind,
        seed=seed,
        options=dataclasses.asdict(_absolute(stored)),
        dataset=faces.describe() | {LABELS_NAME_PEOPLE: names_people(faces, of_one)},
        state="training",
        parent={"run": str(original.path.resolve()), "weights": original.weights} if original else None,
        split=hashlib.sha256(split.dumps()).hexdigest(),
        report={"split": split_summary(split, sets), **left_out},
    )
    training_set, val = sets["retain" if kind == "oracle" else "train"], sets["val"]
    shards, candidates = None, []
    if options.head == CLOSED_FORM:
        if name == TINY:
            reporter.warn(
                f"The tiny model's backbone is randomly initialised, and --head {CLOSED_FORM} does not train it: name a pretrained one "
                "with --model."
            )
        candidates = closed_form_models(model, preprocess.size, options, original)
    if options.sharded:
        if name == TINY:
            reporter.warn(
                "The tiny model's backbone is randomly initialised, and --sharded trains adapters only: name a pretrained one with --model."
            )
        shards = Shards(model, preprocess.size, training_set, options, seed)
        if original is None:
            shards.require_nonempty_shards()
        elif original.record.dataset.get("fingerprint") != faces.fingerprint:
            reporter.note(f"The data has changed since {original.path} was trained, so none of its shards is reused.")
        elif seed == options.seed:
            shards.reuse_shards(original, sets["forget"])
    if original is not None:
        original.require_unchanged()
    if not options.sharded:
        check_model(model, options, preprocess.size, accelerator.device)
    if interrupted is None:
        on_main(accelerator, lambda: _write_run(path, split, record))
    if candidates:
        model, outcome = fit_closed_form(candidates, training_set, val, faces.task, accelerator, reporter, choose=original is None)
    elif shards is None:
        outcome = fit(model, training_set, val, faces.task, options, seed, path, accelerator, reporter)
    else:
        model, outcome = shards.fit(val, faces.task, path, accelerator, reporter)
    record.report |= outcome | measure_unseen_range(model, val, faces.task, accelerator) | measure_photo_range(val)
    record.state = "complete"
    on_main(accelerator, lambda: _write_run(path, split, record, model, preprocess))
    return Run.open(path)


def _split(
    faces: Faces, options: TrainOptions, original: Run | None, interrupted: Run | None, reporter: Reporter
) -> tuple[Split, dict[str, Any]]:
    """Return the split: that of the interrupted run, of the original, or of the recipe; and the record's entry on who was left out.

    Raises:
        NotResumableError: The interrupted run was started on other data, with another split than the recipe's, or with a person who has
            been forgotten since.
    """
    if interrupted is not None:
        if interrupted.record.dataset.get("fingerprint") != faces.fingerprint:
            raise NotResumableError(
                f"The data has changed since the training of {interrupted.path} started; restore it, or start again with --overwrite."
            )
        with checkpoint.reading(interrupted.path):
            split = load_split(interrupted.path / SPLIT)
        if interrupted.record.split is None:  # of an earlier version
            expected = load_split(original.path / SPLIT) if original else recipe_split(options, faces).split
            if split != expected:
                raise NotResumableError(
                    f"{interrupted.path / SPLIT} is not the split of this training; restore it, or start again with --overwrite."
                )
        if original is None and options.suppress is not None:
            _require_left_out(split, find_forgotten(Path(options.suppress), faces.people), interrupted)
        return split, {name: value for name, value in interrupted.record.report.items() if name == LEFT_OUT}
    if original is not None:
        return load_split(original.path / SPLIT), {}
    if options.split is not None:
        _require_consistent(options, load_split(Path(options.split)))
    split, notes, forgotten = recipe_split(options, faces)
    for note in (*notes, *filter(None, [forgotten.warning if forgotten else None])):
        reporter.warn(note)
    if forgotten is None:
        return split, {}
    counted = f"{forgotten.people} (requests in the ledger: {forgotten.requests})"
    reporter.note(f"People of this data who were forgotten and are left out: {counted}.")
    return split, {LEFT_OUT: forgotten.report}


def _require_left_out(split: Split, forgotten: Suppression, interrupted: Run) -> None:
    """Check that no person in the split of an interrupted training was forgotten since it started.

    Raises:
        NotResumableError: A person has.
    """
    if again := forgotten.names.intersection(set().union(*split.people.values())):
        raise NotResumableError(
            f"The sets of {interrupted.path} contain people who were forgotten since the training started ({len(again)}); start again with "
            "--overwrite."
        )


def backbone_name(options: TrainOptions, faces: Faces) -> str:
    """Return the model that a training starts from: the given one, else the default of the data set."""
    return options.model or (TINY if faces.name == "synthetic" else DEFAULT_MODEL)


class RecipeSplit(NamedTuple):
    """The split of a recipe.

    Attributes:
        split: The split, without the people who were forgotten.
        notes: What a given split loses because photos are missing.
        forgotten: These people; None without `--suppress`.
    """

    split: Split
    notes: tuple[str, ...]
    forgotten: Suppression | None


def recipe_split(options: TrainOptions, faces: Faces) -> RecipeSplit:
    """Return the split of a recipe, read or drawn. People who were forgotten are in no set; a later stage needs no ledger to know it."""
    forgotten = find_forgotten(Path(options.suppress), faces.people) if options.suppress is not None else None
    names = forgotten.names if forgotten else frozenset()
    if options.split is not None:
        split, notes = load_split(Path(options.split)).restricted_to(faces)
        return RecipeSplit(split.without(names), notes, forgotten)
    photos = {person: keys for person, keys in faces.photos_by_identity().items() if person not in names}
    return RecipeSplit(make_split(photos, options.seed, options.forget, options.reserve_supports, options.meta_identities), (), forgotten)


def _require_consistent(options: TrainOptions, split: Split) -> None:
    """Check that given split options agree with a split file.

    Raises:
        UsageError: One differs.
    """
    stored = {"forget": len(split.forget), "reserve_supports": len(split.reserved), "meta_identities": split.meta_identities}
    for field in dataclasses.fields(SplitOptions):
        given = getattr(options, field.name)
        if given != field.default and given != stored[field.name]:
            raise UsageError(f"{flag(field.name)} {given} differs from the {stored[field.name]} of --split {options.split}; omit it.")


def _found_data_dir(options: TrainOptions) -> str | None:
    """Return the folder that a named data set was read from without `--data-dir`."""
    found = usual_data_dir(options.dataset)
    return str(found) if found else None


def _absolute(options: TrainOptions) -> TrainOptions:
    """Make paths absolute, so that later stages find the data from any folder. A known name is never a path, even if a folder has it."""
    known = {TINY, *Plugins(DATASETS).names}

    def resolve(value: str) -> str:
        path = Path(value)
        return str(path.resolve()) if value not in known and path.exists() else value

    paths = {name: getattr(options, name) for name in ("dataset", "data_dir", "model", "split", "suppress")}
    resolved: dict[str, Any] = {name: resolve(value) for name, value in paths.items() if value}
    return dataclasses.replace(options, **resolved)


def _write_run(
    path: Path, split: Split, record: Record, model: torch.nn.Module | None = None, preprocess: Preprocess | None = None
) -> None:
    """Write the run, in one step: without a model at the start of the training, and with it and without checkpoints at its end."""
    with new_folder(path, replace=True, private=True, discard=discard_with_secrets(vault_root())) as scratch:
        if model is not None and preprocess is not None:
            save_model(model, preprocess, scratch)
            record.weights, record.settings = hash_weights(scratch), hash_settings(scratch)
            if (path / PROFILE).is_dir():
                shutil.copytree(path / PROFILE, scratch / PROFILE)
        split.save(scratch / SPLIT)
        write_record(scratch, record)
