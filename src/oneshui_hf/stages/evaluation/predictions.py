"""A model's predictions for every photo of a run's data: one pass, stored on disk, so that no metric needs the model again.

RUN/predictions/SET.safetensors contains logits, labels, losses and identity numbers, for retain, forget, val, test and support. The
attacked sets, forget and test, also have the inputs of the classification head, and in SET-view<n>.safetensors the logits of the mirrored
and shifted photos. Each file is sealed: it contains a hash of its inputs, its set and its tensors. A file of other weights, split or
preprocessing, or with a changed number, is made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator

from ...data.face_set import FaceSet
from ...data.schema import Task
from ...errors import OneshuiError
from ...files import clear_leftovers, write_bytes
from ...metrics.comparison import Predictions
from ...models.load import load_model
from ...models.outputs import find_head, losses, predict, predict_with_features
from ...processes import on_main
from ...reporting import SILENT, Reporter
from ...runs import PREDICTIONS, PREPROCESSOR, SPLIT, Run, dump_json, hash_file
from ...sets import ATTACKED, PREDICTED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
    return all(load_sealed(run.path / PREDICTIONS, *view, key) is not None for view in predicted_views(queries))


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
            OneshuiError: Predictions are missing or changed, and so is the model or the data to make them; or some are not finite.
        """
        folder, key = run.path / PREDICTIONS, predictions_key(run, self.batch_size)
        on_main(self.accelerator, lambda: clear_leftovers(folder))
        found = {view: load_sealed(folder, *view, key) for view in predicted_views(self.queries)}
        missing = [view for view, tensors in found.items() if tensors is None]
        if missing and not run.has_weights:
            raise OneshuiError(f"{run.path} lacks valid predictions of {_sets(missing)} and the weights to make them; make the run again.")
        if replaced := [view for view in missing if sealed_file(folder, *view).exists()]:
            self.reporter.note(
                f"The stored predictions of {_sets(replaced)} in {run.path} have other inputs or were changed; making them again."
            )
        if missing:
            model = load_model(run.require_complete().path, self.accelerator.device)[0]
            sets = self.sets()
            for name, view in self.reporter.track(missing, f"Predicting with {run.path.name}"):
                found[name, view] = tensors = self._predict(model, sets[name], name, view)
                if not tensors["logits"].isfinite().all():
                    raise OneshuiError(
                        f"Some predictions of {run.path} are NaN or infinite, so the model cannot be measured; make the run again."
                    )

            def store() -> None:
                for name, view in missing:
                    write_bytes(sealed_file(folder, name, view), sealed_bytes(found[name, view] or {}, name, view, key), private=True)

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


def _sets(views: Sequence[tuple[str, int]]) -> str:
    return ", ".join(sorted({name for name, _ in views}))


def sealed_file(folder: Path, name: str, view: int = 0) -> Path:
    """Return the file of the predictions of a set and view, or of other tensors that are stored with them."""
    return folder / (f"{name}-view{view}.safetensors" if view else f"{name}.safetensors")


def sealed_bytes(tensors: Tensors, name: str, view: int, key: str) -> bytes:
    """Return the content of a file that `load_sealed` reads with the same name, view and key only."""
    from safetensors.torch import save

    # A single metadata entry: safetensors writes several in no fixed order, and equal predictions should be equal bytes.
    return save(tensors, metadata={"seal": _seal(tensors, name, view, key)})


def _seal(tensors: Tensors, name: str, view: int, key: str) -> str:
    """Return the hash of predictions and of what they depend on."""
    from safetensors.torch import save

    content = hashlib.sha256(save(tensors)).hexdigest()
    return hashlib.sha256(dump_json([key, name, view, content])).hexdigest()


def load_sealed(folder: Path, name: str, view: int, key: str) -> Tensors | None:
    """Return the stored tensors of a set and view; None if they are missing, damaged, changed, or have other inputs."""
    from safetensors import SafetensorError, safe_open

    file = sealed_file(folder, name, view)
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as stored:
            metadata, tensors = stored.metadata() or {}, {entry: stored.get_tensor(entry) for entry in stored.keys()}  # noqa: SIM118
    except SafetensorError:  # damaged; predictions can be made again
        return None
    return tensors if metadata.get("seal") == _seal(tensors, name, view, key) else None


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
