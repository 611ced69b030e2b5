"""What a model says about every photo of a run's data: one pass, kept on disk, so that no metric needs the model again.

RUN/predictions/SET.safetensors holds logits, labels, losses and identity numbers of retain, forget, val, test and support; of the sets that
attacks ask about, forget and test, also the inputs of the classification head, and in SET-view<n>.safetensors the logits of the photos
mirrored and shifted. Each file tells what it was made from; one of other weights, another split or another preprocessing is made anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator

from ...data.face_set import FaceSet
from ...data.schema import Task
from ...errors import OneshuiError
from ...metrics.measure import Predictions
from ...models.load import load_model
from ...models.outputs import find_head, losses, predict, predict_with_features
from ...reporting import SILENT, Reporter
from ...runs import PREDICTIONS, PREPROCESSOR, SPLIT, Run, dump_json, hash_file, write_bytes
from ..distributed import on_main

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SETS = ("retain", "forget", "val", "test", "support")
ASKED = ("forget", "test")  # about which attacks ask in several versions

NEEDED = {"logits", "labels", "losses", "identities"}
VIEW = NEEDED - {"logits"}  # what the file of another view leaves to that of the photos themselves

Tensors = dict[str, torch.Tensor]


def made_from(run: Run, batch_size: int) -> str:
    """Return the hash of what predictions depend on: weights, split, preprocessing, data, and the batch size, which decides last digits."""
    parts = [
        run.record.weights,
        hash_file(run.path / SPLIT),
        hash_file(run.path / PREPROCESSOR),
        run.record.dataset.get("fingerprint"),
        batch_size,
    ]
    return hashlib.sha256(dump_json(parts)).hexdigest()


def places(queries: int) -> list[tuple[str, int]]:
    """Return what is predicted: a set and a version of its photos each."""
    return [(name, view) for name in SETS for view in range(queries if name in ASKED else 1)]


def complete(run: Run, batch_size: int, queries: int) -> bool:
    """Return whether all predictions of a model are there, so that it is not needed for them."""
    key = made_from(run, batch_size)
    return all(_stored(_file(run.path / PREDICTIONS, *place), key) is not None for place in places(queries))


@dataclass
class Forecaster:
    """Makes predictions, or finds those that are there. Data and models are loaded when first needed, if at all.

    Attributes:
        sets: Opens the photos, by set.
        task: What is predicted.
        accelerator: Shares the batches.
        batch_size: Photos a forward pass.
        queries: Versions of each photo of `ASKED`, the photo itself among them.
        reporter: For progress.
    """

    sets: Callable[[], Mapping[str, FaceSet]]
    task: Task
    accelerator: Accelerator
    batch_size: int
    queries: int = 1
    reporter: Reporter = SILENT

    def of(self, run: Run) -> dict[str, Predictions]:
        """Return a model's predictions on every set.

        Raises:
            OneshuiError: Some are missing, and so is the model or the data to make them.
        """
        folder, key = run.path / PREDICTIONS, made_from(run, self.batch_size)
        found = {place: _stored(_file(folder, *place), key) for place in places(self.queries)}
        missing = [place for place, tensors in found.items() if tensors is None]
        if missing and not run.has_weights:
            told = ", ".join(sorted({name for name, _ in missing}))
            raise OneshuiError(
                f"{run.path} lacks predictions of {told}, and so it does the weights that would make them; make the run again."
            )
        if missing:
            model = load_model(run.require_complete().path, self.accelerator.device)[0]
            sets = self.sets()
            for name, view in self.reporter.track(missing, f"Predicting with {run.path.name}"):
                found[name, view] = self._predict(model, sets[name], name, view)

            def store() -> None:
                for name, view in missing:
                    write_bytes(_file(folder, name, view), _bytes(found[name, view] or {}, key))

            on_main(self.accelerator, store)
        return {name: _join([found[name, view] or {} for view in range(self.queries if name in ASKED else 1)]) for name in SETS}

    def _predict(self, model: PreTrainedModel, faces: FaceSet, name: str, view: int) -> Tensors:
        if view:
            return {"logits": predict(model, faces, self.accelerator, self.batch_size, view)}
        features = {}
        if name in ASKED and _has_head(model):
            logits, features["features"] = predict_with_features(model, faces, self.accelerator, self.batch_size)
        else:
            logits = predict(model, faces, self.accelerator, self.batch_size)
        each = losses(logits, faces.labels, self.task.kind)
        return {"logits": logits, "labels": faces.labels, "losses": each, "identities": faces.identities} | features


def _has_head(model: PreTrainedModel) -> bool:
    try:
        find_head(model)
    except OneshuiError:  # no linear head, so no features; all else is measured
        return False
    return True


def _file(folder: Path, name: str, view: int) -> Path:
    return folder / (f"{name}-view{view}.safetensors" if view else f"{name}.safetensors")


def _bytes(tensors: Tensors, key: str) -> bytes:
    from safetensors.torch import save

    # One entry: safetensors writes several in no fixed order, and the same predictions should be the same bytes.
    return save(tensors, metadata={"made_from": key})


def _stored(file: Path, key: str) -> Tensors | None:
    """Return the tensors in a file; None where there is none, or it is of another model, or damaged."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as stored:
            whole = stored.metadata() == {"made_from": key} and set(stored.keys()) | (VIEW if "-view" in file.stem else set()) >= NEEDED
            return load_file(file) if whole else None
    except SafetensorError:  # predictions can be made again
        return None


def _join(views: list[Tensors]) -> Predictions:
    first, *others = views
    return Predictions(
        logits=first["logits"],
        labels=first["labels"],
        losses=first["losses"],
        identities=first["identities"],
        features=first.get("features"),
        views=tuple(other["logits"] for other in others),
    )
