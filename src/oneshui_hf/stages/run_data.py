"""The data of an existing run: read again from where training read it, and checked to be the same."""

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
from ..errors import OneshuiError
from ..reporting import SILENT, Reporter
from ..runs import SPLIT, Run
from .command_options import TrainOptions


@dataclass(frozen=True)
class RunData:
    """A run's data set, split and sets (train, retain, forget, val, test, support, reserved)."""

    faces: Faces
    split: Split
    sets: dict[str, FaceSet]


def open_data(run: Run, accelerator: Accelerator, data_dir: str | None = None, reporter: Reporter = SILENT) -> RunData:
    """Read the data that a run was trained on.

    Args:
        run: Any run; unlearned ones carry the options of their original. An oracle's train is what it was trained on: retain.
        accelerator: One process builds caches before the others read them.
        data_dir: Where the data lies now, where it has moved.
        reporter: For progress.

    Raises:
        OneshuiError: The data or the split is missing, or the data has changed since.
    """
    recipe = TrainOptions(**run.require_split().record.options)
    recipe = dataclasses.replace(recipe, data_dir=data_dir or recipe.data_dir)
    preprocess = Preprocess.load(run.path)
    with accelerator.main_process_first():
        faces, pixels = load_pixels(load_faces(**recipe.source(), reporter=reporter), preprocess.size, reporter)
        if faces.fingerprint != run.record.dataset.get("fingerprint"):
            raise OneshuiError(f"The data of {run.path} has changed since it was trained: train again, or restore the data.")
        split = load_split(run.path / SPLIT)
        sets = face_sets(faces, pixels, split, preprocess)
    if run.record.kind == "oracle":
        sets["train"] = _without_those_who_ask(sets)
    return RunData(faces, split, sets)


def _without_those_who_ask(sets: dict[str, FaceSet]) -> FaceSet:
    """Return the training set of a model that never saw those who ask, and whose preparation must not see them, either."""
    train, people = sets["train"], set(sets["forget"].identities.tolist())
    reserved = train.reserved and train.reserved.subset(train.reserved.without(people))
    return dataclasses.replace(train.subset(train.without(people)), reserved=reserved)
