"""Models that are made once and found again by what they were made from: originals, oracles, and what methods make of them.

The key of a model names its data, split, recipe, seed and the version of the recipe's code, or the model, method, options and seed that it
was unlearned with. Whoever needs one that is not there makes it; whoever needs it meanwhile waits. A training that was killed goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ...cache import VAULT, Cache
from ...data.load import load_faces
from ...data.split import load_split, make_split
from ...errors import OneshuiError, UsageError
from ...methods.base import Method
from ...methods.resume import Unfinished
from ...models.load import TINY
from ...options import fields
from ...plugins import METHODS, Plugins
from ...public_names import dataset_name, dataset_word
from ...recognition.encoders import NONE
from ...reporting import SILENT, Reporter
from ...runs import RECORD, SPLIT, Run, hash_file, hash_weights
from ..command_options import DEFAULT_MODEL, EvaluateOptions, PrepareOptions, RetrainOptions, SplitOptions, TrainOptions, UnlearnOptions
from ..distributed import has_half_precision, on_main
from ..prepare import begun, prepare
from ..train import RECIPE, retrain, train
from ..unlearn import unlearn
from .predictions import complete

# Options of a training that say where things lie or how a call goes, or that data and split tell already.
ELSEWHERE = {
    *("dataset", "data_dir", "subset", "image_column", "identity_column", "label_columns", "model", "split", "seed"),
    *(field.name for field in dataclasses.fields(SplitOptions)),
    *("output_dir", "resume", "overwrite", "bf16"),
}


@dataclasses.dataclass(frozen=True)
class Forgotten:
    """What a method made of a model, and the folder of what it had prepared, if it had."""

    run: Run
    artefact: Path | None


@dataclasses.dataclass(frozen=True)
class Stock:
    """The models in a cache.

    Attributes:
        cache: Where they lie.
        accelerator: Trains, prepares and applies what is missing.
        reporter: For progress.
        data_dir: Where the data lies now, where it has moved.
        measured: How its models will be evaluated. An unlearned one whose weights were let go is made again where that needs them.
    """

    cache: Cache
    accelerator: Accelerator
    reporter: Reporter = SILENT
    data_dir: str | None = None
    measured: EvaluateOptions | None = None

    def original(self, options: TrainOptions, made_from: Mapping[str, Any] | None = None) -> Run:
        """Return the original model of a recipe; `made_from` is its key where that is known, since finding it out reads the data."""
        with self._entry(
            "original", made_from or self.original_key(options), {"dataset": dataset_word(options.dataset), "seed": options.seed}
        ) as path:
            self._remove_damaged(path)
            if (path / RECORD).exists():
                found = Run.open(path)
                if found.record.state == "complete":
                    return found
                options = dataclasses.replace(TrainOptions(**found.record.options), data_dir=options.data_dir, resume=True)
            return train(dataclasses.replace(options, output_dir=str(path)), self.accelerator, self.reporter)

    def original_key(self, options: TrainOptions) -> dict[str, Any]:
        """Return what an original is made from. Reads the data, since its fingerprint is part of that."""
        with self.accelerator.main_process_first():
            faces = load_faces(**options.source(), reporter=self.reporter)
        if options.split:
            split = load_split(Path(options.split)).fitted(faces)[0]
        else:
            split = make_split(faces.photos(), options.seed, options.forget, options.reserve_supports, options.meta_identities)
        model = options.model or (TINY if faces.name == "synthetic" else DEFAULT_MODEL)
        recipe = dataclasses.replace(options, model=model)
        return self._recipe("original", recipe, faces.fingerprint, split.dumps().decode(), options.seed)

    def oracle(self, original: Run, seed: int) -> Run:
        """Return the oracle of an original's recipe and split, with a seed of its own for order and augmentation."""
        about = {"dataset": dataset_name(original.record), "seed": seed}
        with self._entry("oracle", self.oracle_key(original, seed), about) as path:
            self._remove_damaged(path)
            resume = (path / RECORD).exists()
            if resume and (found := Run.open(path)).record.state == "complete":
                return found
            options = RetrainOptions(seed=seed, data_dir=self.data_dir, output_dir=str(path), resume=resume)
            return retrain(original, options, self.accelerator, self.reporter)

    def oracle_key(self, original: Run, seed: int) -> dict[str, Any]:
        """Return what an oracle is made from."""
        split = (original.require_split().path / SPLIT).read_text(encoding="utf-8")
        options = TrainOptions(**original.record.options)
        return self._recipe("oracle", options, original.record.dataset.get("fingerprint"), split, seed)

    def oracles(self, original: Run, count: int, besides: Run | None) -> list[Run]:
        """Return so many oracles of other seeds than that of `besides`."""
        taken = {besides.record.seed} if besides else {original.record.seed}
        seeds = [seed for seed in range(original.record.seed + 1, original.record.seed + count + 2) if seed not in taken]
        return [self.oracle(original, seed) for seed in seeds[:count]]

    def forget(self, run: Run, method: str, values: Mapping[str, Any], seed: int, prepared: bool | None = None) -> Forgotten:
        """Return what a method makes of a model with its split's own request.

        Args:
            run: The model.
            method: The method's name.
            values: Of its options; defaults for the others.
            seed: Of all draws.
            prepared: Whether the method is prepared where it may be or not; it is where preparing has something to find out.
        """
        method_class: type[Method[Any]] = Plugins(METHODS).load(method)
        resolved = method_class.prepare_options(method, {}, values)
        if prepared is None:
            prepared = method_class.prepares == "required" or (method_class.prepares == "optional" and _open(resolved))
        artefact = self.artefact(run, method, resolved, seed) if prepared else None
        key = self._method_key(run, method, resolved, seed) | {"prepared": prepared}
        about = {"dataset": dataset_name(run.record), "method": method, "seed": seed}
        with self._entry("unlearned", key, about) as path:
            self._remove_damaged(path)
            if not (path / RECORD).exists() or self._lacks_weights(Run.open(path)):
                options = UnlearnOptions(
                    method=method, from_split=True, seed=seed, data_dir=self.data_dir, output_dir=str(path), overwrite=True
                )
                given = {} if prepared else dataclasses.asdict(resolved)
                vault = _vault(artefact) if artefact else None
                unlearn(run, options, given, self.accelerator, self.reporter, artefact=artefact, vault=vault)
            return Forgotten(Run.open(path), artefact)

    def artefact(self, run: Run, method: str, resolved: Any, seed: int) -> Path:
        """Return the folder of what a method prepared for a model."""
        about = {"dataset": dataset_name(run.record), "method": method, "seed": seed}
        with self._entry("artefact", self._method_key(run, method, resolved, seed), about) as path:
            if not path.exists():
                resume = Unfinished(begun(path)).is_there
                options = PrepareOptions(method=method, seed=seed, data_dir=self.data_dir, face_encoder=NONE, resume=resume)
                given = dataclasses.asdict(resolved)
                prepare(run, options, given, self.accelerator, self.reporter, folder=path, vault=_vault(path))
            return path

    def reference(self, run: Run, oracle: Run) -> Run:
        """Return what the method that made `run` makes of an oracle; the oracle itself where no method made it, or one that would leave it.

        Raises:
            UsageError: The request cannot be repeated.
        """
        if run.record.kind != "unlearned":
            return oracle
        require_repeatable(run)
        report = run.record.report
        if Plugins(METHODS).load(report["method"]).personal:  # to an oracle those who ask are strangers, for whom nothing is prepared
            return oracle
        return self.forget(oracle, report["method"], report["method_options"], run.record.seed, report.get("prepared")).run

    def let_go(self, run: Run) -> None:
        """Remove the weights of an unlearned model of this cache, whose predictions are kept."""
        if run.record.kind == "unlearned" and run.path.parent == self.cache.root:
            on_main(self.accelerator, lambda: _remove_weights(run.path))

    def _remove_damaged(self, path: Path) -> None:
        """Remove a model that is not as it was made, so that it is made again; a cache holds nothing that cannot be."""

        def remove() -> None:
            if path.exists() and not _is_whole(path):
                self.reporter.warn(f"{path.name} in the cache is damaged and is made again.")
                shutil.rmtree(path)

        on_main(self.accelerator, remove)

    def _lacks_weights(self, run: Run) -> bool:
        """Whether a model's weights were let go and are needed again: predictions are missing, or it is to learn."""
        if self.measured is None or run.has_weights:
            return False
        return self.measured.relearn_steps > 0 or not complete(run, self.measured.batch_size, self.measured.queries)

    def there(self, kind: str, made_from: Mapping[str, Any]) -> Run | None:
        """Return a model that is there and complete, without waiting for one that is being made."""
        path = self.cache.root / self.cache.key(kind, made_from)
        found = Run.open(path) if (path / RECORD).exists() else None
        return found if found and found.record.state == "complete" else None

    def _recipe(self, kind: str, options: TrainOptions, fingerprint: Any, split: str, seed: int) -> dict[str, Any]:
        """Return what a training depends on. The seed of the options draws the head, the other one order and augmentation."""
        recipe = {field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name not in ELSEWHERE}
        return {
            "kind": kind,
            "code": RECIPE,
            "data": fingerprint,
            "split": hashlib.sha256(split.encode()).hexdigest(),
            "model": _backbone(options.model or ""),
            "options": recipe,
            "seeds": [options.seed, seed],
            "processes": self.accelerator.num_processes,
            "half_precision": options.bf16 and has_half_precision(self.accelerator.device),
        }

    def _method_key(self, run: Run, method: str, resolved: Any, seed: int) -> dict[str, Any]:
        return {
            "weights": run.record.weights,
            "split": hash_file(run.path / SPLIT),
            "oracle": run.record.kind == "oracle",  # whose training set is smaller
            "method": method,
            "method_from": Plugins(METHODS).origin(method),
            "options": dataclasses.asdict(resolved),
            "seed": seed,
            "processes": self.accelerator.num_processes,
        }

    @contextmanager
    def _entry(self, kind: str, made_from: Mapping[str, Any], about: Mapping[str, Any]) -> Iterator[Path]:
        with self.cache.entry(kind, made_from, about, self.accelerator, self.reporter) as path:
            yield path


def require_repeatable(run: Run) -> None:
    """Check that what made a model can be made of another one, too.

    Raises:
        UsageError: It forgot photos that are not kept.
    """
    if run.record.kind == "unlearned" and run.record.report.get("source") != "split":
        raise UsageError(
            f"{run.path} forgot photos that were handed in, which are not kept, so no reference model can repeat the request; "
            "measure it without --references, or forget the split's own request with --from-split."
        )


def _vault(artefact: Path) -> Path:
    """Return where the secrets of an artefact in the cache lie: beside it, not in the user's own vault.

    Machines that share the cache read what one of them prepared, and clearing the cache leaves no secret behind. So a cache is as
    personal as the photos that its models were made from.
    """
    return artefact.with_name(f"{artefact.name}{VAULT}")


def _is_whole(path: Path) -> bool:
    """Whether a model's record can be read and its weights are those of the record. Weights of an unlearned one may have been let go."""
    try:
        run = Run.open(path)
        if run.record.state == "complete" and (run.has_weights or run.record.kind != "unlearned"):
            run.require_complete()
    except OneshuiError:
        return False
    return True


def _remove_weights(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()


def _open(resolved: Any) -> bool:
    """Whether an option that acts at the request has no value, so that preparing has something to find out."""
    return any(getattr(resolved, name) is None for name, field in fields(type(resolved)).items() if field.metadata["at"] == "apply")


def _backbone(model: str) -> str:
    """Return what tells a pretrained backbone: the hash of a local one's weights, else its name."""
    return hash_weights(Path(model)) if Path(model).is_dir() else model
