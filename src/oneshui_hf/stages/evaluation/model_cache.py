"""A cache of models: originals, oracles, unlearned models and the artefacts they need.

The key of a trained model covers its data, split, recipe, seeds and the version of the recipe's code. The key of an unlearned model covers
the model, method, options and seed. The first process that needs a missing model creates it; others wait. A killed training is resumed.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ...cache import VAULT, Cache
from ...data.load import load_faces
from ...errors import NotResumableError, OneshuiError, UsageError
from ...files import remove
from ...methods.base import Method
from ...methods.resume import ResumeState
from ...options import fields, original_names
from ...plugins import METHODS, Plugins
from ...processes import on_main
from ...public_names import dataset_name, public_dataset_name
from ...recognition.encoders import NONE
from ...reporting import SILENT, Reporter
from ...runs import RECORD, SPLIT, Run, hash_file, hash_weights
from ..checks import resume_folder
from ..command_options import EvaluateOptions, PrepareOptions, RetrainOptions, SplitOptions, TrainOptions, UnlearnOptions
from ..distributed import training_dtype, with_launch_settings
from ..prepare import prepare
from ..run_data import training_options
from ..train import backbone_name, recipe_split, retrain, train
from ..training.recipe import RECIPE_VERSION
from ..unlearn import unlearn
from .predictions import has_all_predictions

# Training options that are not part of a key: locations, control of the call, and what the hashes of data and split already cover.
NOT_IN_KEY = {
    *("dataset", "dataset_revision", "download", "data_dir", "subset", "image_column", "identity_column", "label_columns"),
    *("model", "split", "suppress", "seed"),
    *(field.name for field in dataclasses.fields(SplitOptions)),
    *("output_dir", "push_to_hub", "resume", "overwrite", "report_to", "bf16", "fp16"),
}
# Options that were added after models were first cached. Their defaults are not part of a key, so that old keys stay valid.
ADDED_OPTIONS = ("head", "gradient_accumulation_steps", "max_memory", "compile", "model_revision")


@dataclasses.dataclass(frozen=True)
class UnlearningResult:
    """An unlearned model, and the folder of the artefact it was made with; None without preparation."""

    run: Run
    artefact: Path | None


@dataclasses.dataclass(frozen=True)
class ModelCache:
    """Returns models from a cache and creates the missing ones.

    Attributes:
        cache: The folder they are stored in.
        accelerator: Trains, prepares and applies.
        reporter: For progress.
        data_dir: The current data folder, if the data has moved.
        evaluation: How the models will be evaluated. An unlearned model with evicted weights is made again if that needs the weights.
    """

    cache: Cache
    accelerator: Accelerator
    reporter: Reporter = SILENT
    data_dir: str | None = None
    evaluation: EvaluateOptions | None = None

    def original(self, options: TrainOptions, key: Mapping[str, Any] | None = None) -> Run:
        """Return the original model of a recipe.

        Args:
            options: The recipe.
            key: Its `original_key`, if known; computing it reads the data.
        """
        about = {"dataset": public_dataset_name(options.dataset), "seed": options.seed}
        with self._entry("original", key or self.original_key(options), about) as path:
            self._remove_if_damaged(path)
            options = dataclasses.replace(options, output_dir=str(path))
            if (path / RECORD).exists():
                found = Run.open(path)
                if found.record.state == "complete":
                    return found
                resumed = dataclasses.replace(training_options(found), data_dir=options.data_dir, output_dir=str(path), resume=True)
                try:
                    return train(resumed, self.accelerator, self.reporter)
                except NotResumableError:
                    self._remove_damaged(path)
            return train(options, self.accelerator, self.reporter)

    def original_key(self, options: TrainOptions) -> dict[str, Any]:
        """Return the key of an original. Reads the data, because its fingerprint is part of the key."""
        with self.accelerator.main_process_first():
            faces = load_faces(**options.source(), reporter=self.reporter)
        split = recipe_split(options, faces).split
        recipe = dataclasses.replace(options, model=backbone_name(options, faces))
        return self._recipe("original", recipe, faces.fingerprint, split.dumps().decode(), options.seed)

    def oracle(self, original: Run, seed: int) -> Run:
        """Return the oracle for an original's recipe and split; `seed` sets its order of photos and augmentation."""
        about = {"dataset": dataset_name(original.record), "seed": seed}
        with self._entry("oracle", self.oracle_key(original, seed), about) as path:
            self._remove_if_damaged(path)
            resume = (path / RECORD).exists()
            if resume and (found := Run.open(path)).record.state == "complete":
                return found
            options = RetrainOptions(seed=seed, data_dir=self.data_dir, output_dir=str(path))
            if resume:
                try:
                    return retrain(original, dataclasses.replace(options, resume=True), self.accelerator, self.reporter)
                except NotResumableError:
                    self._remove_damaged(path)
            return retrain(original, options, self.accelerator, self.reporter)

    def oracle_key(self, original: Run, seed: int) -> dict[str, Any]:
        """Return the key of an oracle."""
        split = (original.require_split().path / SPLIT).read_text(encoding="utf-8")
        options = training_options(original)
        return self._recipe("oracle", options, original.record.dataset.get("fingerprint"), split, seed)

    def oracles(self, original: Run, count: int, other_than: Run | None) -> list[Run]:
        """Return `count` oracles whose seeds differ from that of `other_than`, or of the original if None."""
        taken = {other_than.record.seed} if other_than else {original.record.seed}
        seeds = [seed for seed in range(original.record.seed + 1, original.record.seed + count + 2) if seed not in taken]
        return [self.oracle(original, seed) for seed in seeds[:count]]

    def unlearned(self, run: Run, method: str, values: Mapping[str, Any], seed: int, prepared: bool | None = None) -> UnlearningResult:
        """Return the result of a method on a model, for the request of the model's split.

        Args:
            run: The model.
            method: The method's name.
            values: Values of its options; the others have their defaults.
            seed: Seed of all random numbers.
            prepared: For a method whose preparation is optional: whether to prepare it. None prepares it if that sets an open option.
        """
        method_class: type[Method[Any]] = Plugins(METHODS).load(method)
        resolved = method_class.prepare_options(method, {}, values)
        if prepared is None:
            prepared = method_class.prepares == "required" or (method_class.prepares == "optional" and _has_open_options(resolved))
        artefact = self.artefact(run, method, resolved, seed) if prepared else None
        key = self._method_key(run, method, resolved, seed) | {"prepared": prepared}
        about = {"dataset": dataset_name(run.record), "method": method, "seed": seed}
        with self._entry("unlearned", key, about) as path:
            self._remove_if_damaged(path)
            if not (path / RECORD).exists() or self._needs_weights(Run.open(path)):
                options = UnlearnOptions(
                    method=method, from_split=True, seed=seed, data_dir=self.data_dir, output_dir=str(path), overwrite=True
                )
                given = {} if prepared else dataclasses.asdict(resolved)
                vault = vault_folder(artefact) if artefact else None
                unlearn(run, options, given, self.accelerator, self.reporter, artefact=artefact, vault=vault)
            return UnlearningResult(Run.open(path), artefact)

    def artefact(self, run: Run, method: str, resolved: Any, seed: int) -> Path:
        """Return the folder of the artefact that a method prepared for a model."""
        about = {"dataset": dataset_name(run.record), "method": method, "seed": seed}
        with self._entry("artefact", self._method_key(run, method, resolved, seed), about) as path:
            if not path.exists():
                resume = ResumeState(resume_folder(path)).exists
                options = PrepareOptions(
                    method=method,
                    seed=seed,
                    data_dir=self.data_dir,
                    cache_dir=str(self.cache.root),
                    face_encoder=NONE,
                    simulate_batches=False,  # no request desk estimates a batch from it
                    resume=resume,
                )
                given = dataclasses.asdict(resolved)
                prepare(run, options, given, self.accelerator, self.reporter, folder=path, vault=vault_folder(path))
            return path

    def reference(self, run: Run, oracle: Run) -> Run:
        """Return the result of the method that made `run`, applied to an oracle.

        Returns the oracle itself if `run` is not unlearned, or if its method only acts on identities it was prepared for.

        Raises:
            UsageError: The request cannot be repeated.
        """
        if run.record.kind != "unlearned":
            return oracle
        require_repeatable(run)
        report = run.record.report
        if Plugins(METHODS).load(report["method"]).per_identity:  # forget identities are unseen by an oracle: nothing is prepared for them
            return oracle
        return self.unlearned(oracle, report["method"], report["method_options"], run.record.seed, report.get("prepared")).run

    def evict_weights(self, run: Run) -> None:
        """Remove the weights of an unlearned model of this cache; its predictions are kept."""

        def remove() -> None:
            for file in run.path.glob("*.safetensors"):
                file.unlink()

        if run.record.kind == "unlearned" and run.path.parent == self.cache.root:
            on_main(self.accelerator, remove)

    def _remove_if_damaged(self, path: Path) -> None:
        """Remove a model that changed since it was made, so that it is made again; everything in a cache can be."""
        if on_main(self.accelerator, lambda: path.exists() and not _is_intact(path)):
            self._remove_damaged(path)

    def _remove_damaged(self, path: Path) -> None:
        self.reporter.warn(f"{path.name} in the cache is damaged and is made again.")
        on_main(self.accelerator, lambda: remove(path))

    @contextmanager
    def in_use(self, run: Run) -> Iterator[None]:
        """Let no other process evaluate a run of this cache or remove its weights until the block ends; wait for one that does."""
        with self.cache.hold(run.path.name, self.accelerator, self.reporter):
            yield

    def _needs_weights(self, run: Run) -> bool:
        """Return whether a model's weights were evicted and are needed again: for missing predictions, relearning or attacks."""
        if self.evaluation is None or run.has_weights:
            return False
        reads_weights = self.evaluation.relearn_steps > 0 or self.evaluation.attacks == "all"
        return reads_weights or not has_all_predictions(run, self.evaluation.batch_size, self.evaluation.queries)

    def lookup(self, kind: str, key: Mapping[str, Any]) -> Run | None:
        """Return a complete model of the cache, or None. Does not wait for one that is being made."""
        path = self.cache.root / self.cache.key(kind, key)
        found = Run.open(path) if (path / RECORD).exists() else None
        return found if found and found.record.state == "complete" else None

    def _recipe(self, kind: str, options: TrainOptions, fingerprint: Any, split: str, seed: int) -> dict[str, Any]:
        """Return everything a training depends on. The options' seed draws the head, `seed` the order of photos and the augmentation."""
        if kind == "original":  # an oracle has the settings of its original
            options = with_launch_settings(options)[0]
        recipe = {field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name not in NOT_IN_KEY}
        for name in ADDED_OPTIONS:
            if recipe[name] == fields(TrainOptions)[name].default:
                del recipe[name]
        return {
            "kind": kind,
            "code": RECIPE_VERSION,
            "data": fingerprint,
            "split": hashlib.sha256(split.encode()).hexdigest(),
            "model": _backbone_key(options.model or ""),
            "options": original_names(TrainOptions, recipe),
            "seeds": [options.seed, seed],
            "processes": self.accelerator.num_processes,
            "half_precision": self._half_precision(options),
        }

    def _half_precision(self, options: TrainOptions) -> bool | str:
        """Return whether training uses bfloat16, as keys have always had it, or "fp16"."""
        dtype = training_dtype(self.accelerator.device, bf16=options.bf16, fp16=options.fp16)
        return "fp16" if dtype == torch.float16 else dtype == torch.bfloat16

    def _method_key(self, run: Run, method: str, resolved: Any, seed: int) -> dict[str, Any]:
        return {
            "weights": run.record.weights,
            "split": hash_file(run.path / SPLIT),
            "oracle": run.record.kind == "oracle",  # its training set is smaller
            "method": method,
            "method_from": Plugins(METHODS).origin(method),
            "options": original_names(type(resolved), dataclasses.asdict(resolved)),  # the key survives a renamed option
            "seed": seed,
            "processes": self.accelerator.num_processes,
        }

    @contextmanager
    def _entry(self, kind: str, key: Mapping[str, Any], about: Mapping[str, Any]) -> Iterator[Path]:
        with self.cache.entry(kind, key, about, self.accelerator, self.reporter) as path:
            yield path


def require_repeatable(run: Run) -> None:
    """Check that the request of an unlearned model can be repeated on another model.

    Raises:
        UsageError: The request used photos that are not kept.
    """
    if run.record.kind == "unlearned" and run.record.report.get("source") != "split":
        raise UsageError(
            f"{run.path} was unlearned with support images that are not kept, so no reference model can repeat the request; "
            "evaluate it without --references, or unlearn the split's own request with --from-split."
        )


def vault_folder(artefact: Path) -> Path:
    """Return the folder of the keys of an artefact in the cache: next to the artefact, not in the user's vault.

    Machines that share the cache can read what one of them prepared, and clearing the cache removes all keys. Therefore a cache is as
    personal as the photos its models were trained on.
    """
    return artefact.with_name(f"{artefact.name}{VAULT}")


def _is_intact(path: Path) -> bool:
    """Return whether a model's record is readable and matches split and weights; an unlearned model's weights may be evicted."""
    try:
        run = Run.open(path)
        if run.record.state == "complete":
            run.require_split()
        if run.record.state == "complete" and (run.has_weights or run.record.kind != "unlearned"):
            run.require_complete()
    except OneshuiError:
        return False
    return True


def _has_open_options(resolved: Any) -> bool:
    """Return whether an option that acts at the request has no value yet, so that preparation has to find it."""
    return any(getattr(resolved, name) is None for name, field in fields(type(resolved)).items() if field.metadata["at"] == "apply")


def _backbone_key(model: str) -> str:
    """Return what identifies a pretrained backbone: the hash of a local model's weights, else its name."""
    return hash_weights(Path(model)) if Path(model).is_dir() else model
