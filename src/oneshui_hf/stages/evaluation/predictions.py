"""A model's predictions for every photo of a run's data: one pass, stored on disk, so that no metric needs the model again.

RUN/predictions/SET.safetensors contains logits, labels, losses and identity numbers, for retain, forget, val, test and support. The
attacked sets, forget and test, also have the inputs of the classification head, and in SET-view<n>.safetensors the logits of the mirrored
and shifted photos. Each file contains the key of its inputs; a file of other weights, split or preprocessing is made again.
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
from ...files import write_bytes
from ...metrics.comparison import Predictions
from ...models.load import load_model
from ...models.outputs import find_head, losses, predict, predict_with_features
from ...reporting import SILENT, Reporter
from ...runs import PREDICTIONS, PREPROCESSOR, SPLIT, Run, dump_json, hash_file
from ...sets import ATTACKED, PREDICTED
from ..distributed import on_main

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REQUIRED = {"logits", "labels", "losses", "identities"}
NOT_IN_VIEWS = REQUIRED - {"logits"}  # stored once, in the file of the unchanged photos

Tensors = dict[str, torch.Tensor]


def predictions_key(run: Run, batch_size: int) -> str:
    """Return the hash of what predictions depend on: weights, split, preprocessing, data, and the batch size, which affects last digits."""
    parts = [
        run.record.weights,
        hash_file(run.path / SPLIT),
        hash_file(run.path / PREPROCESSOR),
        run.record.dataset.get("fingerprint"),
        batch_size,
    ]
    return hashlib.sha256(dump_json(parts)).hexdigest()


def predicted_views(queries: int) -> list[tuple[str, int]]:
    """Return what is predicted, as pairs of a set and a view of its photos; view 0 is the photo itself."""
    return [(name, view) for name in PREDICTED for view in range(_view_count(name, queries))]


def _view_count(name: str, queries: int) -> int:
    return queries if name in ATTACKED else 1


def has_all_predictions(run: Run, batch_size: int, queries: int) -> bool:
    """Return whether all predictions of a model are stored, so that its weights are not needed for them."""
    key = predictions_key(run, batch_size)
    return all(_load(_file(run.path / PREDICTIONS, *view), key) is not None for view in predicted_views(queries))


@dataclass
class Predictor:
    """Loads stored predictions and makes the missing ones. Data and models are loaded only if something is missing.

    Attributes:
        sets: Opens the photos, by set.
        task: What is predicted.
        accelerator: Distributes the batches.
        batch_size: Photos per forward pass.
        queries: Views of each photo of the `ATTACKED` sets, including the photo itself.
        reporter: For progress.
    """

    sets: Callable[[], Mapping[str, FaceSet]]
    task: Task
    accelerator: Accelerator
    batch_size: int
    queries: int = 1
    reporter: Reporter = SILENT

    def predictions(self, run: Run) -> dict[str, Predictions]:
        """Return a model's predictions on every set.

        Raises:
            OneshuiError: Predictions are missing, and so is the model or the data to make them.
        """
        folder, key = run.path / PREDICTIONS, predictions_key(run, self.batch_size)
        found = {view: _load(_file(folder, *view), key) for view in predicted_views(self.queries)}
        missing = [view for view, tensors in found.items() if tensors is None]
        if missing and not run.has_weights:
            names = ", ".join(sorted({name for name, _ in missing}))
            raise OneshuiError(f"{run.path} lacks predictions of {names} and the weights to make them; make the run again.")
        if missing:
            model = load_model(run.require_complete().path, self.accelerator.device)[0]
            sets = self.sets()
            for name, view in self.reporter.track(missing, f"Predicting with {run.path.name}"):
                found[name, view] = self._predict(model, sets[name], name, view)

            def store() -> None:
                for name, view in missing:
                    write_bytes(_file(folder, name, view), _to_bytes(found[name, view] or {}, key))

            on_main(self.accelerator, store)
        return {name: _join([found[name, view] or {} for view in range(_view_count(name, self.queries))]) for name in PREDICTED}

    def _predict(self, model: PreTrainedModel, faces: FaceSet, name: str, view: int) -> Tensors:
        if view:
            return {"logits": predict(model, faces, self.accelerator, self.batch_size, view)}
        features = {}
        if name in ATTACKED and _has_head(model):
            logits, features["features"] = predict_with_features(model, faces, self.accelerator, self.batch_size)
        else:
            logits = predict(model, faces, self.accelerator, self.batch_size)
        per_photo = losses(logits, faces.labels, self.task.kind)
        return {"logits": logits, "labels": faces.labels, "losses": per_photo, "identities": faces.identities} | features


def _has_head(model: PreTrainedModel) -> bool:
    try:
        find_head(model)
    except OneshuiError:  # no linear head, so no features; everything else is measured
        return False
    return True


def _file(folder: Path, name: str, view: int) -> Path:
    return folder / (f"{name}-view{view}.safetensors" if view else f"{name}.safetensors")


def _to_bytes(tensors: Tensors, key: str) -> bytes:
    from safetensors.torch import save

    # A single metadata entry: safetensors writes several in no fixed order, and equal predictions should be equal bytes.
    return save(tensors, metadata={"made_from": key})


def _load(file: Path, key: str) -> Tensors | None:
    """Return the tensors of a file; None if it is missing, damaged, or has another key."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as stored:
            names = set(stored.keys()) | (NOT_IN_VIEWS if "-view" in file.stem else set())
            valid = stored.metadata() == {"made_from": key} and names >= REQUIRED
            return load_file(file) if valid else None
    except SafetensorError:  # damaged; predictions can be made again
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
