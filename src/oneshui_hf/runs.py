"""The run directory: its layout and its record.

RUN/
  config.json, model.safetensors, preprocessor_config.json   a plain transformers checkpoint, readable by `pipeline()`
  oneshui.json       the record: options, versions, seed, data set fingerprint, hashes of the files, parent run and hash of its weights
  split.json         the identities of train, val, test and forget, and the support images. Personal: never published
  metrics.json       the metrics that `evaluate` measured
  curves.json        the data of figures, per identity and without names. Personal: never published
  predictions/       logits, labels and identity index of each set. Personal: never published
  methods/<name>/    a method's artefact
  destruction.json   while a request destroys prepared data: what it destroys, without names. Never published
  methods/.request-<hex>.json   where the run is that such a request writes, if it is not next to this one. Never published
  methods/.<name>.unfinished/   the resume state of a running or interrupted preparation. Personal, not encrypted: never published
  tuned/<name>.json  a preset that `oneshui tune` wrote
  checkpoint-<n>/    training state after n epochs, or with -<s> after s more steps; deleted when training ends
  shards/<s>/        while a sharded model is trained: the finished adapter of shard s, or its checkpoint. Deleted when training ends
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from .errors import OneshuiError, UsageError, first_line
from .files import clear_leftovers, open_regular, write_bytes
from .json_text import MAX_BYTES, parse_json
from .option_values import expand_home
from .printable import escape_json, printable
from .record_schema import RecordFields
from .validation import check_fields

RECORD = "oneshui.json"
SPLIT = "split.json"
METRICS = "metrics.json"
CURVES = "curves.json"
DESTRUCTION = "destruction.json"
PREDICTIONS = "predictions"
METHODS = "methods"
TUNED = "tuned"
MANIFEST = "benchmark.json"  # in a benchmark's folder: the rows of its grid
ROWS = "rows"  # in a benchmark's folder: one file per job
CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
FORMAT = 1
RUNS = Path("runs")  # the default folder of runs

Kind = Literal["original", "oracle", "unlearned"]
KINDS = ("original", "oracle", "unlearned")


@dataclasses.dataclass
class Record:
    """The contents of `oneshui.json`: everything needed to describe a run and to reproduce it."""

    kind: Kind
    seed: int
    options: dict[str, Any]
    dataset: dict[str, Any]
    state: Literal["training", "complete"] = "complete"
    parent: dict[str, Any] | None = None
    weights: str | None = None
    settings: dict[str, str] = dataclasses.field(default_factory=dict)  # see `hash_settings`; empty in runs of earlier versions
    split: str | None = None  # the SHA-256 of split.json; None in published runs and in those of earlier versions
    report: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=lambda: versions())
    publications: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # repositories that the run was pushed to or pulled from
    format: int = FORMAT


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory that exists, with its record."""

    path: Path
    record: Record

    def __fspath__(self) -> str:
        return str(self.path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """Open an existing run.

        Raises:
            UsageError: The folder is missing or is not a run.
            OneshuiError: Its record cannot be read.
        """
        path = Path(expand_home(os.fspath(path)))
        if not path.is_dir():
            restore_replaced(path.parent)
        if not path.is_dir():
            raise UsageError(f"There is no run at {path}; create one with `oneshui train`.")
        file = path / RECORD
        if not file.is_file():
            raise UsageError(f"{path} is not a run: it contains no {RECORD}.")
        record = read_object(file)
        if record.get("format") != FORMAT:
            raise OneshuiError(f"{file} has format {record.get('format')}, this version reads {FORMAT}: upgrade oneshui-hf.")
        check_fields(RecordFields, record, file)
        known = {f.name for f in dataclasses.fields(Record)}
        return cls(path, Record(**{k: v for k, v in record.items() if k in known}))

    @functools.cached_property
    def weights(self) -> str:
        """The SHA-256 of the weights on disk. It is computed on first access and kept, since hashing a large model is slow."""
        return hash_weights(self.path)

    @property
    def request_size(self) -> int:
        """Number of identities in the forget set.

        Raises:
            OneshuiError: The record does not contain it.
        """
        size = (self.record.report.get("split") or {}).get("forget_identities")
        if size is None:
            raise OneshuiError(f"{self.path / RECORD} is damaged: it does not contain the number of forget identities.")
        return size

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels.

        Raises:
            OneshuiError: The record does not contain them.
        """
        return tuple(self._described("labels"))

    @property
    def task(self) -> Literal["multi_label", "single_label"]:
        """What is predicted: "multi_label" or "single_label".

        Raises:
            OneshuiError: The record does not contain it.
        """
        return self._described("task")

    def _described(self, name: str) -> Any:
        value = self.record.dataset.get(name)
        if not value:
            raise OneshuiError(f"{self.path / RECORD} is damaged: its description of the data has no '{name}'.")
        return value

    def artefact(self, method: str) -> Path:
        """Return the folder of a method's artefact, which may not exist."""
        return self.path / METHODS / method

    @property
    def has_weights(self) -> bool:
        """Whether the weights exist; a benchmark may delete them and keep the predictions only."""
        return any(self.path.glob("*.safetensors"))

    def require_finished(self) -> Run:
        """Return self.

        Raises:
            UsageError: Training has not finished.
        """
        if self.record.state != "complete":
            raise UsageError(f"{self.path} has not finished training; run the same command with --resume.")
        return self

    def require_unchanged(self) -> Run:
        """Return self. Call it after reading several files of the run: then all of them are of the same run.

        Raises:
            OneshuiError: Another process has replaced the run since it was opened, or its split is another one.
        """
        if Run.open(self.path).record != self.record:
            raise OneshuiError(f"Another process has replaced {self.path} meanwhile; run the same command again.")
        return self.require_split()

    def require_complete(self) -> Run:
        """Return self.

        Raises:
            UsageError: Training has not finished.
            OneshuiError: The hash of the weights differs from the record.
        """
        self.require_finished()
        if self.record.weights is not None and self.weights != self.record.weights:
            raise OneshuiError(
                f"The weights in {self.path} are not those of its record: they were damaged or changed by hand. Restore them."
            )
        return self.require_settings()

    def require_settings(self) -> Run:
        """Return self.

        Raises:
            OneshuiError: The model's config or its preprocessing differs from what the record states.
        """
        found = hash_settings(self.path)
        if changed := [name for name, digest in self.record.settings.items() if found.get(name) != digest]:
            raise OneshuiError(f"{self.path / changed[0]} is not the one of its record: it was damaged or changed by hand. Restore it.")
        return self

    def require_split(self) -> Run:
        """Return self.

        Raises:
            OneshuiError: The run has no split, as it came from the Hub, or another one than its record states.
        """
        if not (self.path / SPLIT).exists():
            raise OneshuiError(f"{self.path} has no {SPLIT} (published runs have none), so its sets are not known.")
        if self.record.split is not None and hash_file(self.path / SPLIT) != self.record.split:
            raise OneshuiError(f"{self.path / SPLIT} is not the split of its run: it was damaged or changed by hand. Restore it.")
        return self


def restore_replaced(folder: Path) -> None:
    """Restore the runs in a folder that a killed process was replacing. What else it left is kept, since it may name secrets."""
    clear_leftovers(folder, discard=lambda leftover: None)


def versions() -> dict[str, str]:
    """Return the versions of this package and of the libraries that its results depend on."""
    names = ("oneshui-hf", "torch", "transformers", "datasets", "accelerate", "safetensors", "pillow")
    return {name: metadata.version(name) for name in names}


def read_json(file: Path) -> Any:
    """Read a JSON file; see `parse_json` for what it may contain.

    Raises:
        OneshuiError: It is missing, is not such a file, or is no regular file.
    """
    try:
        with open_regular(file) as stream:
            return parse_json(stream.read(MAX_BYTES + 1))
    except FileNotFoundError:
        raise OneshuiError(f"{file} is missing.") from None
    except (ValueError, RecursionError) as error:
        raise OneshuiError(f"{file} is not JSON ({first_line(error)}).") from None


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Raises:
        OneshuiError: It is missing, is not JSON, or contains something other than an object.
    """
    value = read_json(file)
    if not isinstance(value, dict):
        raise OneshuiError(f"{file} is damaged: it contains no JSON object.")
    return value


def dump_json(value: Any) -> bytes:
    """Return a value as JSON in the format of all JSON files of this package: UTF-8, sorted keys, two spaces, safe on a terminal.

    Raises:
        OneshuiError: It contains text that is not UTF-8, such as the name of a file with other bytes.
    """
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        part = text[max(0, error.start - 40) : error.end + 40]
        raise OneshuiError(f"A name has bytes that are not UTF-8, so it cannot be written; rename it: {printable(part)}") from None
    return f"{escape_json(text)}\n".encode()


def write_json(file: Path, value: Any, *, private: bool = False) -> None:
    """Write a JSON file atomically; `private` as in `write_bytes`."""
    write_bytes(file, dump_json(value), private=private)


def with_checksum(value: dict[str, Any]) -> dict[str, Any]:
    """Return an object with the SHA-256 of its contents, which `has_valid_checksum` verifies."""
    return value | {"content": hashlib.sha256(dump_json(value)).hexdigest()}


def has_valid_checksum(value: dict[str, Any]) -> bool:
    """Whether an object is unchanged since `with_checksum` returned it: not truncated and not edited by hand."""
    return value == with_checksum({key: item for key, item in value.items() if key != "content"})


def read_checked(file: Path) -> dict[str, Any]:
    """Read an object that was written with a checksum.

    Raises:
        OneshuiError: It is missing, is no JSON object, or has changed since it was written.
    """
    value = read_object(file)
    if not has_valid_checksum(value):
        raise OneshuiError(f"{file} has changed since it was written, or is of an earlier version.")
    return value


def write_record(path: Path, record: Record) -> None:
    """Write a run's record. Write it last, since it makes the folder a run."""
    write_json(path / RECORD, dataclasses.asdict(record))


def require_writable(path: Path, *, overwrite: bool, source: Path | None = None) -> None:
    """Check that a run may be written at `path`.

    Args:
        path: The folder of the new run.
        overwrite: Accept an existing run.
        source: The run from which the new run is computed.

    Raises:
        UsageError: It overlaps with `source`, is or is below a file, may not be written to, or exists and may not be replaced.
    """
    target = path.resolve()
    if source and (target == source.resolve() or target in source.resolve().parents or source.resolve() in target.parents):
        raise UsageError(f"{path} is, contains or is inside the source run {source}; name another --output-dir.")
    require_writable_place(target, "a folder", "--output-dir")
    if not path.exists() or not any(path.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"{path} exists; name another --output-dir, or replace it with --overwrite.")
    if not (path / RECORD).is_file():
        raise UsageError(f"{path} is not a run, so --overwrite does not replace it; name another --output-dir.")


def require_writable_file(file: Path, *, overwrite: bool, resumable: bool = False, flag: str = "--output") -> None:
    """Check that a file may be written.

    Args:
        file: The file.
        overwrite: Accept an existing file.
        resumable: Mention --resume in the message about an existing file.
        flag: The option that names the file, for messages.

    Raises:
        UsageError: It is a folder, is below a file, may not be written to, or exists and may not be replaced.
    """
    if file.is_dir():
        raise UsageError(f"{file} is a folder; name a file with {flag}.")
    require_writable_place(file.parent, "another file", flag)
    if file.exists() and not overwrite:
        resume = "resume with --resume, " if resumable else ""
        raise UsageError(f"{file} exists; {resume}name another file with {flag}, or replace it with --overwrite.")


def require_writable_place(folder: Path, noun: str, flag: str) -> None:
    """Check that files can be created in a folder; it need not exist yet.

    Args:
        folder: The folder.
        noun: What the user should name instead, for messages.
        flag: The option with which the user names it.

    Raises:
        UsageError: The folder or a parent is a file, or the nearest existing folder may not be written to.
    """
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise UsageError(f"{existing} is a file; name {noun} with {flag}.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"There is no permission to write in {existing}; name {noun} with {flag}.")


def hash_file(file: Path) -> str:
    """Return a file's SHA-256."""
    with open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_settings(path: Path) -> dict[str, str]:
    """Return the SHA-256 of a checkpoint's config and of its preprocessing, by the name of the file, as far as they exist."""
    return {name: hash_file(path / name) for name in (CONFIG, PREPROCESSOR) if (path / name).is_file()}


def hash_weights(path: Path) -> str:
    """Return the SHA-256 of a checkpoint's safetensors files.

    Raises:
        OneshuiError: There are none.
    """
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise OneshuiError(f"{path} contains no model.safetensors; pickled checkpoints are not read.")
    return combine_hashes([hash_file(file) for file in files])


def combine_hashes(hashes: Sequence[str]) -> str:
    """Return the SHA-256 of weights from that of each of their files, in the order of the files' names."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
