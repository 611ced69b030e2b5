"""Training: the original model on all training people, and the oracle on those who stay.

    oneshui train --dataset celeba --data-dir DIR --forget 5
    oneshui retrain --run RUN
    accelerate launch -m oneshui_hf train ...

Both are one recipe: the oracle starts from the same pretrained backbone and the same drawn head, sees the same split without the
people to forget, and draws its own order of photos. Never does it start from the original model's weights.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..data.augment import augment
from ..data.load import load_faces
from ..data.pixels import FaceSet, face_sets, load_pixels
from ..data.preprocess import Preprocess
from ..data.schema import Faces
from ..data.split import Split, load_split, make_split
from ..data.split import summary as split_summary
from ..errors import UsageError
from ..metrics.summary import score
from ..models.load import TINY, new_model, save_model
from ..models.outputs import losses, predict
from ..options import flag
from ..plugins import DATASETS, Plugins
from ..randomness import generator, seeded
from ..reporting import SILENT, Reporter
from ..runs import RUNS, SPLIT, Kind, Record, Run, claim, hash_weights, new_folder, write_record
from . import checkpoint
from .options import DEFAULT_MODEL, RetrainOptions, SplitOptions, TrainOptions
from .processes import half_precision, make_accelerator, on_main

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
    reporter.say(f"{len(faces)} photos of {len(faces.people)} people; {len(split.forget)} will ask to be forgotten.")

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
    if not options.resume:
        on_main(accelerator, lambda: _start(path, split, record))
    chosen = sets["retain" if kind == "oracle" else "train"]
    outcome = fit(model, chosen, sets["val"], faces.task, options, seed, path, accelerator, reporter)
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
    for pattern in ("checkpoint-*", ".checkpoint-*", f".{MODEL}.*"):  # the last two are scratch folders of killed processes
        for leftover in path.glob(pattern):
            shutil.rmtree(leftover)


def fit(
    model: torch.nn.Module,
    faces: FaceSet,
    val: FaceSet,
    task: Any,
    options: TrainOptions,
    seed: int,
    path: Path,
    accelerator: Accelerator,
    reporter: Reporter,
) -> dict[str, Any]:
    """Train `model` in place, checkpointing to `path` after each epoch; return what became of it."""
    step_size = options.batch_size * accelerator.num_processes
    steps = math.ceil(len(faces) / step_size)
    optimizer = _optimizer(model, options)
    progress: dict[str, Any] = {"best_epoch": None, "best_score": None, "history": []}
    best: checkpoint.Weights | None = None
    first = 0
    if options.resume and (folder := checkpoint.latest(path)):
        weights, best, state, progress = checkpoint.load(folder)
        model.load_state_dict(weights)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        first = progress.pop("epoch")
        reporter.say(f"Going on after epoch {first}.")
    wrapped, optimizer = accelerator.prepare(model, optimizer)

    for epoch in range(first, options.epochs):
        wrapped.train()
        order = torch.randperm(len(faces), generator=generator(seed, "order", epoch))
        draws = generator(seed, "augment", epoch, accelerator.process_index)
        total = torch.zeros((), device=accelerator.device)
        with seeded(seed, "dropout", epoch, accelerator.process_index):
            for step in reporter.track(range(steps), f"Epoch {epoch + 1}/{options.epochs}"):
                _set_rate(optimizer, options, epoch * steps + step, steps)
                positions = order[step * step_size : (step + 1) * step_size]
                mine, share = _my_part(positions, accelerator)
                pixels = augment(faces.raw(mine).to(accelerator.device), options.augment, draws)
                with half_precision(accelerator.device, options.bf16):
                    logits = wrapped(pixel_values=faces.preprocess(pixels)).logits
                each = losses(logits.float(), faces.labels[mine].to(accelerator.device), task.kind)
                loss = each.sum() / share
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
                total += each.detach().sum()
        value = score(predict(model, val, accelerator), val.labels, task)
        mean = accelerator.reduce(total, reduction="sum").item() / len(faces)
        progress["history"].append({"epoch": epoch + 1, "train_loss": mean, f"val_{task.score_name}": value})
        reporter.say(f"Epoch {epoch + 1}: loss {mean:.4f}, val {task.score_name} {value:.1f}")
        if options.keep == "best" and (progress["best_score"] is None or value > progress["best_score"]):
            progress |= {"best_score": value, "best_epoch": epoch + 1}
            best = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        kept = best
        on_main(
            accelerator,
            lambda: checkpoint.save(path, epoch + 1, model.state_dict(), kept, optimizer.state_dict(), progress),  # noqa: B023
        )
    if best is not None:
        model.load_state_dict(best)
    return progress | {"epochs": options.epochs}


def _optimizer(model: torch.nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    if options.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(),
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            foreach=True,
        )
    return torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=options.weight_decay, foreach=True)


def _set_rate(optimizer: torch.optim.Optimizer, options: TrainOptions, step: int, steps_per_epoch: int) -> None:
    """Set the learning rate: linear warm-up, then a cosine to zero. A function of the step alone, so resuming needs no state."""
    warmup, total = options.warmup_epochs * steps_per_epoch, options.epochs * steps_per_epoch
    if step < warmup:
        rate = options.lr * (step + 1) / (warmup + 1)
    else:
        rate = options.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = rate


def _my_part(positions: torch.Tensor, accelerator: Accelerator) -> tuple[torch.Tensor, float]:
    """Return this process's photos of a step, and by what to divide their summed loss.

    DDP averages gradients over processes, so each divides by (photos of the step / processes): the average is the mean over all
    photos, whatever their number. A last step with fewer photos than processes repeats some, and counts them.
    """
    world = accelerator.num_processes
    if len(positions) < world:
        positions = positions.repeat(math.ceil(world / len(positions)))[:world]
    return positions[accelerator.process_index :: world], len(positions) / world
