"""The run directory: what is where, what it was made from, and writing that leaves a whole file or none.

RUN/
  config.json, model.safetensors, preprocessor_config.json   a plain transformers checkpoint, for `pipeline()` and anyone else
  oneshui.json       the record: options, versions, seed, data set fingerprint, parent run and its weights' hash
  split.json         who is train, val, test, forget; which photo is support. Personal: never published
  metrics.json       what `evaluate` measured
  curves.json        what figures are drawn from, person by person and without names. Personal: never published
  predictions/       logits, labels and identity index of each set. Personal: never published
  methods/<name>/    a method's artefact
  methods/.<name>.unfinished/   where a preparation stands while it works, or was interrupted. Personal, not encrypted: never published
  tuned/<name>.json  a preset that `oneshui tune` found
  checkpoint-<n>/    training state after n epochs, while training runs
  shards/<s>/        of a sharded model that is being trained: what shard s has learned, or its checkpoint. Gone when training ends
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from .errors import OneshuiError, UsageError

RECORD = "oneshui.json"
SPLIT = "split.json"
METRICS = "metrics.json"
CURVES = "curves.json"
PREDICTIONS = "predictions"
METHODS = "methods"
TUNED = "tuned"
MANIFEST = "benchmark.json"  # of a benchmark's folder: which rows belong to its grid
ROWS = "rows"  # the folder of a benchmark's rows, one file a job
PREPROCESSOR = "preprocessor_config.json"
FORMAT = 1
RUNS = Path("runs")  # where runs are made and looked for, unless named

Kind = Literal["original", "oracle", "unlearned"]
KINDS = ("original", "oracle", "unlearned")


@dataclasses.dataclass
class Record:
    """The contents of `oneshui.json`: all that is needed to say what a run is and to make it again."""

    kind: Kind
    seed: int
    options: dict[str, Any]
    dataset: dict[str, Any]
    state: Literal["training", "complete"] = "complete"
    parent: dict[str, Any] | None = None
    weights: str | None = None
    report: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=lambda: versions())
    format: int = FORMAT


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory that exists, with its record."""

    path: Path
    record: Record

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open an existing run.

        Raises:
            UsageError: The folder is missing or is no run.
            OneshuiError: Its record cannot be read.
        """
        path = Path(path)
        if not path.is_dir():
            raise UsageError(f"There is no run at {path}; `oneshui train` makes one.")
        file = path / RECORD
        if not file.is_file():
            raise UsageError(f"{path} is not a run: it holds no {RECORD}.")
        record = read_object(file)
        if record.get("format") != FORMAT:
            raise OneshuiError(f"{file} has format {record.get('format')}, this version reads {FORMAT}: upgrade oneshui-hf.")
        known = {f.name for f in dataclasses.fields(Record)}
        try:
            found = Record(**{k: v for k, v in record.items() if k in known})
        except TypeError as error:
            raise OneshuiError(f"{file} is not a complete record: {error}.") from None
        objects = all(isinstance(part, dict) for part in (found.options, found.dataset, found.report, found.parent or {}))
        if not objects or found.kind not in KINDS:
            raise OneshuiError(f"{file} is damaged: its parts are not those of a record.")
        return cls(path, found)

    @functools.cached_property
    def weights(self) -> str:
        """The SHA-256 of the weights as they lay on disk when first asked for: hashing a large model takes a while."""
        return hash_weights(self.path)

    @property
    def request_size(self) -> int:
        """How many people of its split ask to be forgotten.

        Raises:
            OneshuiError: Its record does not tell.
        """
        split = self.record.report.get("split")
        size = split.get("forget_identities") if isinstance(split, dict) else None
        if not isinstance(size, int):
            raise OneshuiError(f"{self.path / RECORD} is damaged: it does not tell how many people ask to be forgotten.")
        return size

    def artefact(self, method: str) -> Path:
        """Where a method's artefact lies, whether or not it has been prepared."""
        return self.path / METHODS / method

    @property
    def has_weights(self) -> bool:
        """Whether the model itself is there; a benchmark keeps what it said and may let it go."""
        return any(self.path.glob("*.safetensors"))

    def require_finished(self) -> Run:
        """Return self.

        Raises:
            UsageError: Training has not finished.
        """
        if self.record.state != "complete":
            raise UsageError(f"{self.path} has not finished training; run the same command with --resume.")
        return self

    def require_complete(self) -> Run:
        """Return self.

        Raises:
            UsageError: Training has not finished.
            OneshuiError: The weights are not those that were written.
        """
        self.require_finished()
        if self.record.weights is not None and self.weights != self.record.weights:
            raise OneshuiError(f"The weights in {self.path} are not those of its record: damaged, or changed by hand. Restore them.")
        return self

    def require_split(self) -> Run:
        """Return self.

        Raises:
            OneshuiError: It came from the Hub, without the split that says which photo is in which set.
        """
        if not (self.path / SPLIT).exists():
            raise OneshuiError(f"{self.path} has no {SPLIT} (published runs carry none), so its sets are not known.")
        return self


def newest(root: Path, kinds: tuple[Kind, ...] = ("original",)) -> Run:
    """Return the run below `root` that was written last. Runs that cannot be read are passed over.

    Raises:
        UsageError: There is none.
    """
    runs, damaged = [], []
    for file in sorted(root.glob(f"*/{RECORD}")):
        if file.parent.name.startswith("."):  # a scratch folder, left behind by a killed process
            continue
        try:
            runs.append(Run.open(file.parent))
        except OneshuiError:
            damaged.append(file.parent.name)
    runs = [run for run in runs if run.record.kind in kinds and run.record.state == "complete"]
    if not runs:
        unread = f" ({', '.join(damaged)} cannot be read)" if damaged else ""
        raise UsageError(f"There is no finished run in {root}/{unread}; train one with `oneshui train`, or name one with --run.")
    return max(runs, key=lambda run: (run.path / RECORD).stat().st_mtime)


def versions() -> dict[str, str]:
    """Return the versions of this package and of what its results depend on."""
    names = ("oneshui-hf", "torch", "transformers", "datasets", "accelerate", "safetensors", "pillow")
    return {name: metadata.version(name) for name in names}


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        OneshuiError: It is missing or not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OneshuiError(f"{file} is missing.") from None
    except (ValueError, RecursionError) as error:
        raise OneshuiError(f"{file} is not JSON ({error}).") from None


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        OneshuiError: It is missing, not JSON, or holds something else.
    """
    value = read_json(file)
    if not isinstance(value, dict):
        raise OneshuiError(f"{file} is damaged: it holds no JSON object.")
    return value


def dump_json(value: Any) -> bytes:
    """Return the bytes that every JSON file here is written as."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def write_bytes(file: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)  # noqa: PTH101
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_bytes(file, dump_json(value))


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """Return an object with the hash of its contents, by which `is_sealed` knows it again."""
    return value | {"content": hashlib.sha256(dump_json(value)).hexdigest()}


def is_sealed(value: dict[str, Any]) -> bool:
    """Whether an object is as `sealed` returned it, and was not cut short or changed by hand since."""
    return value == sealed({key: item for key, item in value.items() if key != "content"})


def write_record(path: Path, record: Record) -> None:
    """Write a run's record; last of all files, since it is what makes the folder a run."""
    write_json(path / RECORD, dataclasses.asdict(record))


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a scratch folder beside `path` that becomes `path` when the block succeeds and vanishes when it fails.

    What `replace` replaces is whole again where the last step fails, and lies beside `path` as `.NAME.*.old` where the process is
    killed in between.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    scratch.chmod(0o755)
    try:
        yield scratch
        if replace and path.exists():
            _swap(scratch, path)
        else:
            scratch.rename(path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _swap(scratch: Path, path: Path) -> None:
    aside = scratch.with_name(f"{scratch.name}.old")
    path.rename(aside)
    try:
        scratch.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    shutil.rmtree(aside)


def claim(path: Path, *, overwrite: bool, source: Path | None = None) -> None:
    """Check that a run may be written at `path`, which is made from the run at `source`.

    Raises:
        UsageError: Something is there and may not be overwritten.
    """
    target = path.resolve()
    if source and (target == source.resolve() or target in source.resolve().parents or source.resolve() in target.parents):
        raise UsageError(f"{path} is, holds or lies in {source}, the run that it would be made from; name another --output-dir.")
    for place in (target, *target.parents):
        if place.exists() and not place.is_dir():
            raise UsageError(f"{place} is a file; name a folder with --output-dir.")
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists; name another --output-dir, or replace it with --overwrite.")
    if path.exists() and not (path / RECORD).is_file():
        raise UsageError(f"{path} is not a run, so --overwrite leaves it alone; name another --output-dir.")


def hash_file(file: Path) -> str:
    """Return a file's SHA-256."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_weights(path: Path) -> str:
    """Return the SHA-256 over a checkpoint's safetensors files.

    Raises:
        OneshuiError: There are none.
    """
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise OneshuiError(f"{path} holds no model.safetensors; pickled checkpoints are not read.")
    if len(files) == 1:
        return hash_file(files[0])
    return hashlib.sha256("".join(map(hash_file, files)).encode()).hexdigest()
