"""Fold models: models by a run's own recipe, each trained without some of its training identities, for methods that cross-fit.

They are trained on training identities only, kept in the model cache, and continued after an interruption. No attack uses them: reference
models of attacks are oracles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from ...cache import Cache
from ...data.face_set import FaceSet
from ...data.preprocess import Preprocess
from ...errors import NotResumableError, OneshuiError
from ...files import new_folder, remove
from ...models.load import load_model, save_model
from ...models.new import new_model
from ...processes import on_main
from ...public_names import dataset_name
from ...reporting import SILENT, PrefixedReporter, Reporter
from ...runs import SPLIT, Run, hash_file
from ..distributed import training_dtype
from ..run_data import RunData, training_options
from . import checkpoint
from .closed_form import closed_form_models, fit_closed_form
from .loop import fit
from .recipe import CLOSED_FORM, RECIPE_VERSION
from .shards import Shards

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

    from ..command_options import TrainOptions

OUTCOME = "outcome.json"  # written last: an entry of the cache with it is complete


@dataclasses.dataclass(frozen=True)
class FoldModels:
    """Returns fold models of a run from a cache and trains the missing ones; a `Retraining` of methods.

    Attributes:
        run: The run whose recipe is repeated.
        data: Its data.
        cache: Where the models are kept.
        accelerator: Trains on all processes.
        reporter: For progress.
    """

    run: Run
    data: RunData
    cache: Cache
    accelerator: Accelerator
    reporter: Reporter = SILENT

    @property
    def _options(self) -> TrainOptions:
        return dataclasses.replace(training_options(self.run), resume=True, profile=False)

    def __call__(self, left_out: Collection[int], seed: int) -> PreTrainedModel:
        """Return a model that was trained by the run's recipe without some training identities, in evaluation mode.

        Args:
            left_out: Numbers of the identities.
            seed: Seed of the order of photos and of the augmentation.

        Raises:
            OneshuiError: No training photo is left, or the training diverged.
        """
        train = self.data.sets["train"]
        kept = train.positions_without(left_out)
        if not len(kept):
            raise OneshuiError("A fold model cannot be trained: no training identity is left.")
        about = {"dataset": dataset_name(self.run.record), "seed": seed}
        with self.cache.entry("fold", self._key(left_out, seed), about, self.accelerator, self.reporter) as path:
            if not on_main(self.accelerator, lambda: _is_complete(path)):
                try:
                    self._train(train.subset(kept), seed, path)
                except NotResumableError:
                    self.reporter.warn(f"{path.name} in the cache is damaged and is made again.")
                    on_main(self.accelerator, lambda: remove(path))
                    self._train(train.subset(kept), seed, path)
            return load_model(path, self.accelerator.device)[0]

    def _key(self, left_out: Collection[int], seed: int) -> dict[str, object]:
        """Return what a fold model depends on. The weights of the run stand for its recipe and data.

        The cache stores the key. It has the numbers of the identities and not their names, which a hash would not hide.
        """
        return {
            "code": RECIPE_VERSION,
            "weights": self.run.record.weights,
            "split": hash_file(self.run.path / SPLIT),
            "left_out": sorted(left_out),
            "seed": seed,
            "processes": self.accelerator.num_processes,
            "dtype": str(training_dtype(self.accelerator.device, bf16=self._options.bf16, fp16=self._options.fp16)),
        }

    def _train(self, faces: FaceSet, seed: int, path: Path) -> None:
        """Train a model and write it to the folder, or continue an interrupted training there.

        Raises:
            NotResumableError: What an interrupted training left is damaged.
        """
        options, task, val = self._options, self.data.faces.task, self.data.sets["val"]
        assert options.model is not None  # the options of a run name it
        model, _ = new_model(options.model, task, options.image_size, options.seed, options.model_revision)
        all_people, people = (len(some.positions_of) for some in (self.data.sets["train"], faces))
        self.reporter.info(f"Training a fold model on {people} of {all_people} identities.")
        reporter = PrefixedReporter(self.reporter, "Fold model")
        size = self.data.sets["train"].preprocess.size
        if options.head == CLOSED_FORM:
            candidates = closed_form_models(model, size, options, self.run)
            model, outcome = fit_closed_form(candidates, faces, val, task, self.accelerator, reporter, choose=False)
        elif options.sharded:
            model, outcome = Shards(model, size, faces, options, seed).fit(val, task, path, self.accelerator, reporter)
        else:
            outcome = fit(model, faces, val, task, options, seed, path, self.accelerator, reporter, validate="last")

        def write() -> None:
            with new_folder(path, replace=True, private=True) as scratch:
                save_model(model, Preprocess.load(self.run.path), scratch)
                checkpoint.write_sealed(scratch / OUTCOME, outcome)

        on_main(self.accelerator, write)


def _is_complete(path: Path) -> bool:
    """Return whether the folder contains a trained model that has not changed since it was written."""
    try:
        checkpoint.read_sealed(path / OUTCOME, checkpoint.MODEL)
    except OneshuiError:
        return False
    return True
