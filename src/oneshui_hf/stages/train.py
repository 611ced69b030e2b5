"""Training: the original model on all training people, and the oracle on those who stay.

    oneshui train --dataset celeba --data-dir DIR --forget 5
    oneshui retrain --run RUN
    accelerate launch -m oneshui_hf train ...

Both are one recipe: the oracle starts from the same pretrained backbone and the same drawn head, sees the same split without the
people to forget, and draws its own order of photos. Never does it start from the original model's weights. Of a sharded model, with the
same seed, it keeps the shards in which nobody asks: training them anew would give the same weights (`shards`).
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..data.face_set import face_sets
from ..data.load import load_faces
from ..data.pixels import load_pixels
from ..data.preprocess import Preprocess
from ..data.schema import Faces
from ..data.split import Split, load_split, make_split
from ..data.split import summary as split_summary
from ..errors import UsageError
from ..models.load import TINY, new_model, save_model
from ..options import flag
from ..plugins import DATASETS, Plugins
from ..reporting import SILENT, Reporter
from ..runs import RUNS, SPLIT, Kind, Record, Run, claim, hash_weights, new_folder, write_record
from .command_options import DEFAULT_MODEL, RetrainOptions, SplitOptions, TrainOptions
from .distributed import make_accelerator, on_main
from .training.loop import fit
from .training.shards import SHARDS, Shards, require_adapters

RECIPE = 1  # raise it when the same options would train another model than before: what a cache keeps is then made anew
MODEL = ".model"  # in a run: where the finished model is written whole, before its files take their places


def train(options: TrainOptions, accelerator: Accelerator | None = None, reporter: Reporter = SILENT) -> Run:
    """Train the original model on all training people.

    Raises:
        UsageError: An option is wrong or the output folder is in the way.
        OneshuiError: The data cannot be used.
    """
    name = Path(options.dataset).resolve().name
    path = Path(options.output_dir or RUNS / f"{name}-seed{options.seed}")
    if options.resume:
        cut = _interrupted(path, "original", options, reporter)
        options = _stored(cut, options)
        if cut.record.state == "complete":
            return cut
    else:
        claim(path, overwrite=options.overwrite)
    return _train(path, "original", options, options.seed, None, accelerator, reporter)


def retrain(original: Run, options: RetrainOptions, accelerator: Accelerator | None = None, reporter: Reporter = SILENT) -> Run:
    """Train the oracle: the original's recipe and split, on the people who stay.

    Of a sharded original only the shards of those who ask are trained, unless the seed is another one or the data has changed since.

    Raises:
        UsageError: The run is no finished original model, or the output folder is in the way.
    """
    if original.require_complete().require_split().record.kind != "original":
        raise UsageError(f"{original.path} is an {original.record.kind} model; --run takes the original model.")
    path = Path(options.output_dir or f"{original.path}-oracle")
    recipe = TrainOptions(**original.record.options)
    seed = recipe.seed if options.seed is None else options.seed
    if options.resume:
        cut = _interrupted(path, "oracle", options, reporter)
        if cut.record.state == "complete":
            return cut
        seed = cut.record.seed
    else:
        claim(path, overwrite=options.overwrite, source=original.path)
    recipe = dataclasses.replace(recipe, data_dir=options.data_dir or recipe.data_dir, resume=options.resume, output_dir=str(path))
    return _train(path, "oracle", recipe, seed, original, accelerator, reporter)


def _interrupted(path: Path, kind: Kind, options: TrainOptions | RetrainOptions, reporter: Reporter) -> Run:
    """Open a run that `--resume` goes on with."""
    if options.overwrite:
        raise UsageError("--resume goes on with a run and --overwrite replaces it; give one of them.")
    run = Run.open(path)
    if run.record.kind != kind:
        raise UsageError(f"{path} is an {run.record.kind} model's run, not an {kind} model's; name another --output-dir.")
    if run.record.state == "complete":
        reporter.note(f"{path} has finished training already.")
    return run


def _stored(run: Run, options: TrainOptions) -> TrainOptions:
    """Return the interrupted run's own options; one that was given anew and differs is an error."""
    stored = TrainOptions(**run.record.options)
    given = _absolute(options)
    for field in dataclasses.fields(TrainOptions):
        new, kept = getattr(given, field.name), getattr(stored, field.name)
        if field.name not in ("resume", "overwrite", "output_dir") and new != field.default and new != kept:
            raise UsageError(f"{flag(field.name)} {new} differs from the {kept} of the interrupted run; --resume keeps its options.")
    return dataclasses.replace(stored, resume=True, output_dir=str(run.path))


def _train(
    path: Path,
    kind: Kind,
    options: TrainOptions,
    seed: int,
    original: Run | None,
    accelerator: Accelerator | None,
    reporter: Reporter,
) -> Run:
    require_adapters(options)
    accelerator = accelerator or make_accelerator()
    with accelerator.main_process_first():  # one process builds the caches, the others read them
        faces = load_faces(**options.source(), reporter=reporter)
        name = options.model or (TINY if faces.name == "synthetic" else DEFAULT_MODEL)
        model, preprocess = new_model(name, faces.task, options.image_size, options.seed)
        for note in faces.left_out.sentences():
            reporter.note(note)
        faces, pixels = load_pixels(faces, preprocess.size, reporter)
        split = _split(faces, options, original, reporter)
        sets = face_sets(faces, pixels, split, preprocess)
    reporter.info(f"{len(faces)} photos of {len(faces.people)} people; {len(split.forget)} will ask to be forgotten.")

    # The stored options make the run again: the model's name and the paths are resolved, what only concerns this call is not kept.
    stored = dataclasses.replace(
        options,
        model=name,
        image_size=preprocess.size,
        forget=len(split.forget),
        reserve_supports=len(split.reserved),
        meta_identities=split.meta_identities,
        resume=False,
        overwrite=False,
        output_dir=None,
    )
    record = Record(
        kind=kind,
        seed=seed,
        options=dataclasses.asdict(_absolute(stored)),
        dataset=faces.describe(),
        state="training",
        parent={"run": str(original.path.resolve()), "weights": original.weights} if original else None,
        report={"split": split_summary(split, sets)},
    )
    chosen, val = sets["retain" if kind == "oracle" else "train"], sets["val"]
    shards = None
    if options.sharded:
        if name == TINY:
            reporter.warn(
                "The tiny model's backbone is drawn at random, and --sharded trains adapters alone: name a pretrained one with --model."
            )
        shards = Shards(model, preprocess.size, chosen, options, seed)
        if original is None:
            shards.require_people()
        elif original.record.dataset.get("fingerprint") != faces.fingerprint:
            reporter.note(f"The data has changed since {original.path} was trained, so none of its shards is taken over.")
        elif seed == options.seed:
            shards.take_over(original, sets["forget"])
    if not options.resume:
        on_main(accelerator, lambda: _start(path, split, record))
    if shards is None:
        outcome = fit(model, chosen, val, faces.task, options, seed, path, accelerator, reporter)
    else:
        model, outcome = shards.fit(val, faces.task, path, accelerator, reporter)
    record.report |= outcome
    on_main(accelerator, lambda: _finish(path, model, preprocess, record))
    return Run.open(path)


def _split(faces: Faces, options: TrainOptions, original: Run | None, reporter: Reporter) -> Split:
    if original is not None:
        return load_split(original.path / SPLIT)
    if options.split is not None:
        split = load_split(Path(options.split))
        _refuse_contradiction(options, split)
        split, notes = split.fitted(faces)
        for note in notes:
            reporter.warn(note)
        return split
    return make_split(faces.photos(), options.seed, options.forget, options.reserve_supports, options.meta_identities)


def _refuse_contradiction(options: TrainOptions, split: Split) -> None:
    """Refuse options that a split has answered otherwise.

    Raises:
        UsageError: One was given and differs.
    """
    told = {"forget": len(split.forget), "reserve_supports": len(split.reserved), "meta_identities": split.meta_identities}
    for field in dataclasses.fields(SplitOptions):
        given = getattr(options, field.name)
        if given != field.default and given != told[field.name]:
            raise UsageError(f"{flag(field.name)} {given} differs from the {told[field.name]} of --split {options.split}; leave it out.")


def _absolute(options: TrainOptions) -> TrainOptions:
    """Resolve paths, so that later stages find the data from any folder. A known name is no path, whatever folder is called so."""
    known = {TINY, *Plugins(DATASETS).names}

    def resolve(value: str) -> str:
        path = Path(value).expanduser()
        return str(path.resolve()) if value not in known and path.exists() else value

    paths = {name: getattr(options, name) for name in ("dataset", "data_dir", "model", "split")}
    resolved: dict[str, Any] = {name: resolve(value) for name, value in paths.items() if value}
    return dataclasses.replace(options, **resolved)


def _start(path: Path, split: Split, record: Record) -> None:
    with new_folder(path, replace=True) as scratch:
        split.save(scratch / SPLIT)
        write_record(scratch, record)


def _finish(path: Path, model: torch.nn.Module, preprocess: Preprocess, record: Record) -> None:
    with new_folder(path / MODEL, replace=True) as scratch:  # a killed process may have left one
        save_model(model, preprocess, scratch)
    for file in (path / MODEL).iterdir():
        file.replace(path / file.name)
    (path / MODEL).rmdir()
    record.weights, record.state = hash_weights(path), "complete"
    write_record(path, record)
    for pattern in ("checkpoint-*", SHARDS, ".checkpoint-*", f".{MODEL}.*"):  # the last two are scratch folders of killed processes
        for leftover in path.glob(pattern):
            shutil.rmtree(leftover)
