"""Publication of a run on the Hugging Face Hub, and download. Per-identity data is only published with two flags.

    oneshui push RUN USER/NAME
    oneshui pull USER/NAME

Only files on a list of public files are copied into an empty folder, and only that folder is sent. So nothing is published because it was
forgotten to exclude it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ...errors import OneshuiError
from ...files import new_folder, write_bytes
from ...hub import Repository, hub_errors, logged_in_client
from ...methods.identity_store import BLOB, BLOBS, read_index
from ...methods.identity_store import INDEX as IDENTITY_INDEX
from ...public_names import METHOD_NAME
from ...reporting import SILENT, Reporter
from ...runs import METHODS as METHODS_FOLDER
from ...runs import METRICS, PREPROCESSOR, RECORD, SPLIT, Record, Run, hash_weights, read_json, write_json, write_record
from ..checks import check_people_flags, check_pull
from ..command_options import PullOptions, PushOptions
from .redaction import (
    PrivateTerms,
    iter_strings,
    keep_numbers,
    public_config,
    public_method_options,
    public_metrics,
    public_preprocessor,
    public_record,
    public_versions,
)

CARD, CONFIG = "README.md", "config.json"
SHARD_INDEX = "model.safetensors.index.json"
WEIGHTS = "model*.safetensors"  # one file, or the shards of a large model, with the names of transformers
ARTEFACT_FILES = ("artefact.json", "artefact.safetensors")
ARTEFACTS = tuple(f"{METHODS_FOLDER}/*/{file}" for file in ARTEFACT_FILES)
IDENTITY_FILES = (IDENTITY_INDEX, BLOBS)
IDENTITIES = tuple(f"{METHODS_FOLDER}/*/{file}" for file in IDENTITY_FILES)
PATTERNS = (CARD, CONFIG, PREPROCESSOR, RECORD, METRICS, SHARD_INDEX, WEIGHTS, *ARTEFACTS, *IDENTITIES)


def push(run: Run, options: PushOptions, reporter: Reporter = SILENT) -> str:
    """Publish a run in one commit and return the commit's URL.

    Raises:
        UsageError: The run is not complete, nobody is logged in, the repository is public and a private one was requested, or only one of
            the two flags for per-identity data was given.
        OneshuiError: The run contains something that may not be published, or the Hub cannot be reached or denies access.
    """
    check_people_flags(options)
    run.require_complete()
    with tempfile.TemporaryDirectory(prefix="oneshui-push-") as scratch, hub_errors(options.repo_id, options.revision):
        api, folder = logged_in_client(), Path(scratch)
        # Collected before the repository is created, so that an error leaves no trace.
        record = collect_public_files(run, folder, reporter, with_people=options.with_people)
        repository = Repository.open_or_create(
            api, options.repo_id, kind="model", private=options.private, revision=options.revision, reporter=reporter
        )
        _write_card(folder, record, repository.name)
        return repository.commit(folder, options.commit_message, is_published_file, reporter)


def pull(options: PullOptions, reporter: Reporter = SILENT) -> Run:
    """Download a published run. The run folder is created complete and checked, or not at all.

    Raises:
        UsageError: The output folder exists, or the name is not valid for a repository.
        OneshuiError: The repository is missing, does not contain a run, or its weights do not match its record; or the Hub cannot be
            reached.
    """
    path = check_pull(options)
    with new_folder(path, replace=options.overwrite) as scratch:
        reporter.info(f"Fetching {options.repo_id}.")
        with hub_errors(options.repo_id, options.revision):
            from huggingface_hub import snapshot_download

            # Only listed files: no pickles and no code, regardless of the contents of the repository.
            snapshot_download(options.repo_id, revision=options.revision, local_dir=scratch, allow_patterns=list(PATTERNS))
        shutil.rmtree(scratch / ".cache", ignore_errors=True)  # the client's own metadata about the download
        _check_downloaded_run(scratch, options.repo_id)
    return Run.open(path)


def _check_downloaded_run(folder: Path, repo_id: str) -> None:
    if not (folder / RECORD).is_file():
        raise OneshuiError(f"{repo_id} does not contain a run of oneshui: it has no {RECORD}.")
    record = Run.open(folder).record
    if hash_weights(folder) != record.weights:
        raise OneshuiError(f"The weights of {repo_id} do not match its record: they are damaged or were tampered with.")


# The folder that is sent


def collect_public_files(run: Run, folder: Path, reporter: Reporter = SILENT, *, with_people: bool = False) -> Record:
    """Write the public files of a run, except the card, into an empty folder; return the public record.

    Args:
        run: The run.
        folder: The folder.
        reporter: For warnings.
        with_people: Include the encrypted per-identity data of artefacts. Keys are never included.

    Raises:
        OneshuiError: The run's weights do not match its record, or a file contains something that may not be published.
    """
    config = public_config(read_json(run.path / CONFIG), run)
    _refuse_labels_of_people(config, run)
    write_json(folder / CONFIG, config)
    write_json(folder / PREPROCESSOR, public_preprocessor(read_json(run.path / PREPROCESSOR)))
    _copy_weights(run, folder)
    private = PrivateTerms.of_run(run)
    for source in sorted((run.path / METHODS_FOLDER).glob("*/artefact.json")):
        target = _copy_artefact(source.parent, folder, run, private, reporter)
        if target and with_people:
            _copy_identity_files(source.parent, target)
    if (run.path / METRICS).exists():
        from ...card import OUTDATED_MAP, has_outdated_map

        metrics = read_json(run.path / METRICS)
        if has_outdated_map(metrics):
            reporter.warn(f"{run.path / METRICS}: {OUTDATED_MAP}")
        write_json(folder / METRICS, public_metrics(metrics))
    record = public_record(run.record, config, private, reporter)
    write_record(folder, record)
    return record


def _refuse_labels_of_people(config: Mapping[str, Any], run: Run) -> None:
    """Check that no label is the name of a person: the config, the record and the card contain all labels.

    Raises:
        OneshuiError: One is.
    """
    from ...data.identity_labels import LABELS_NAME_PEOPLE, publish_people
    from ...data.split import load_split

    labels = [str(name) for name in (config.get("id2label") or {}).values()]
    people: set[str] = set()
    if (run.path / SPLIT).exists():
        split = load_split(run.path / SPLIT)
        people.update(split.forget, *split.people.values())
    # Records from before this was checked do not have it.
    if publish_people(labels, people, is_people=run.record.dataset.get(LABELS_NAME_PEOPLE)):
        raise OneshuiError(
            f"Labels of {run.path} are names of its identities, and {CONFIG} contains all labels, so nothing was sent; "
            "train on labels that do not name people."
        )


def _copy_weights(run: Run, folder: Path) -> None:
    """Copy the weights unchanged: artefacts refer to their hash."""
    for file in sorted(run.path.glob(WEIGHTS)):
        _tensor_names(file)
        shutil.copyfile(file, folder / file.name)
    if hash_weights(folder) != run.record.weights:
        raise OneshuiError(f"The weights in {run.path} do not match its {RECORD}, so they are not published.")
    if (run.path / SHARD_INDEX).exists():
        index = read_json(run.path / SHARD_INDEX)
        shards = {name: file for name, file in index["weight_map"].items() if (folder / file).is_file()}
        write_json(folder / SHARD_INDEX, {"metadata": keep_numbers(index.get("metadata", {})), "weight_map": shards})


def _tensor_names(file: Path) -> list[str]:
    """Return the names of a file's tensors.

    Raises:
        OneshuiError: The file is damaged, or contains text in its metadata.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as tensors:
            metadata, names = tensors.metadata() or {}, list(tensors.keys())
    except SafetensorError as error:
        raise OneshuiError(f"{file} is damaged ({error}).") from None
    if extra := {key: value for key, value in metadata.items() if (key, value) != ("format", "pt")}:
        raise OneshuiError(f"{file} contains text in its metadata ({', '.join(sorted(extra))}), so it is not published.")
    return names


def _copy_artefact(source: Path, folder: Path, run: Run, private: PrivateTerms, reporter: Reporter) -> Path | None:
    """Copy the public part of an artefact, without `people.*`, and return its new folder; None if it is not published."""
    header = read_json(source / ARTEFACT_FILES[0])
    if header.get("method") != source.name or not METHOD_NAME.fullmatch(source.name):
        raise OneshuiError(f"{source} is not the artefact of a method.")
    if header["weights"] != run.record.weights:
        reporter.warn(f"The artefact of '{source.name}' was prepared for other weights, so it is not published.")
        return None
    tensors = _tensor_names(source / ARTEFACT_FILES[1])
    if private.occurs_in([*iter_strings(header["values"]), *tensors]):
        raise OneshuiError(
            f"The public part of {source} contains the name of an identity, a photo or a folder, so nothing was sent; "
            "this is a bug in the method. Remove the artefact to publish the rest."
        )
    public = {
        "format": header["format"],
        "method": header["method"],
        "weights": header["weights"],
        "versions": public_versions(header.get("versions", {})),
        "options": public_method_options(source.name, header["options"], reporter),
        "values": header["values"],
        "report": keep_numbers(header.get("report", {}), private),
    }
    target = folder / METHODS_FOLDER / source.name
    write_json(target / ARTEFACT_FILES[0], public)
    shutil.copyfile(source / ARTEFACT_FILES[1], target / ARTEFACT_FILES[1])
    return target


def _copy_identity_files(source: Path, target: Path) -> None:
    """Copy the encrypted per-identity data: an index of numbers and numbered blobs, nothing else."""
    if not any((source / file).exists() for file in IDENTITY_FILES):
        return
    index = read_index(source)
    if unencrypted := [name for name in _tensor_names(source / BLOBS) if not BLOB.fullmatch(name)]:
        raise OneshuiError(f"{source / BLOBS} contains {len(unencrypted)} tensors that are not encrypted, so nothing was sent.")
    write_json(target / IDENTITY_INDEX, index)
    shutil.copyfile(source / BLOBS, target / BLOBS)


def _write_card(folder: Path, record: Record, repo_id: str) -> None:
    """Write the card, from the published files only."""
    from ...card import model_card

    metrics = read_json(folder / METRICS) if (folder / METRICS).exists() else {}
    prepared = [file.parent.name for file in folder.glob(f"{METHODS_FOLDER}/*/{ARTEFACT_FILES[0]}")]
    with_people = any(folder.glob(IDENTITIES[0]))
    card = model_card(record, read_json(folder / CONFIG), metrics, repo_id, prepared, with_people=with_people)
    write_bytes(folder / CARD, card.encode())


def is_published_file(file: str) -> bool:
    """Return whether a file in a repository has a name that a push writes."""
    return any(fnmatch(file, pattern) and file.count("/") == pattern.count("/") for pattern in PATTERNS)
