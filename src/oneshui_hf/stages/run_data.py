"""The data of an existing run: read again from its source, and verified to be unchanged."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from accelerate import Accelerator

from ..data.face_set import FaceSet, face_sets
from ..data.load import load_faces
from ..data.pixels import load_pixels
from ..data.preprocess import Preprocess
from ..data.schema import Faces
from ..data.split import Split, load_split
from ..errors import OneshuiError, UsageError
from ..options import resolve
from ..reporting import SILENT, Reporter
from ..runs import RECORD, SPLIT, Run
from .command_options import TrainOptions


@dataclass(frozen=True)
class RunData:
    """A run's data set, split and sets (train, retain, forget, val, test, support, reserved)."""

    faces: Faces
    split: Split
    sets: dict[str, FaceSet]


def training_options(run: Run) -> TrainOptions:
    """Return the training options of a run, stored under current or earlier names.

    Raises:
        OneshuiError: One of them is unknown, or has a value that no training has.
    """
    options = run.record.options
    if "gradient_accumulation_steps" not in options:  # of an earlier version, whose defaults were bf16 where a GPU has it, and no fp16
        options = {name: value for name, value in options.items() if (name, value) not in (("bf16", True), ("fp16", False))}
    try:
        return resolve(TrainOptions, options, "train")
    except UsageError as error:
        raise OneshuiError(f"{run.path / RECORD} is damaged: {error}") from None


def open_data(run: Run, accelerator: Accelerator, data_dir: str | None = None, reporter: Reporter = SILENT) -> RunData:
    """Read the data that a run was trained on.

    Args:
        run: Any run; unlearned runs have the training options of their original. The train set of an oracle is its retain set.
        accelerator: One process builds caches before the others read them.
        data_dir: The data's folder, if it has moved.
        reporter: For progress.

    Raises:
        OneshuiError: The data or the split is missing, or the data has changed since training.
    """
    recipe = training_options(run.require_split())
    recipe = dataclasses.replace(recipe, data_dir=data_dir or recipe.data_dir)
    preprocess = Preprocess.load(run.path)
    with accelerator.main_process_first():
        faces, pixels = load_pixels(load_faces(**recipe.source(), reporter=reporter), preprocess.size, reporter)
        if faces.fingerprint != run.record.dataset.get("fingerprint"):
            raise OneshuiError(f"The data of {run.path} has changed since it was trained: train again, or restore the data.")
        split = load_split(run.path / SPLIT)
        sets = face_sets(faces, pixels, split, preprocess)
    if run.record.kind == "oracle":
        sets["train"] = _drop_forget_identities(sets)
    return RunData(faces, split, sets)


def _drop_forget_identities(sets: dict[str, FaceSet]) -> FaceSet:
    """Return the training set of an oracle, which was not trained on the forget identities; its preparation excludes them, too."""
    train, people = sets["train"], set(sets["forget"].identities.tolist())
    reserved = train.reserved and train.reserved.subset(train.reserved.positions_without(people))
    return dataclasses.replace(train.subset(train.positions_without(people)), reserved=reserved)
