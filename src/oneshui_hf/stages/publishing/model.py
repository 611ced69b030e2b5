"""Publication: a run to the Hugging Face Hub, and back, without anything that concerns single people unless asked for twice.

    oneshui push RUN USER/NAME
    oneshui pull USER/NAME

What leaves this machine is copied piece by piece into an empty folder, from a list of what may be published; only that
folder is sent. Nothing is published because nobody thought of holding it back.
"""

from __future__ import annotations

import shutil
import tempfile
from fnmatch import fnmatch
from pathlib import Path

from ...errors import OneshuiError, UsageError
from ...hub import Repository, hub, signed_in
from ...methods.identity_store import BLOB, BLOBS, public_index
from ...methods.identity_store import INDEX as PEOPLE_INDEX
from ...public_names import METHOD_NAME
from ...reporting import SILENT, Reporter
from ...runs import METHODS as METHODS_FOLDER
from ...runs import (
    METRICS,
    PREPROCESSOR,
    RECORD,
    RUNS,
    Record,
    Run,
    claim,
    hash_weights,
    new_folder,
    read_json,
    write_bytes,
    write_json,
    write_record,
)
from ..command_options import PullOptions, PushOptions
from .redaction import (
    Private,
    numbers,
    public_config,
    public_method_options,
    public_metrics,
    public_preprocessor,
    public_record,
    public_versions,
    strings,
)

CARD, CONFIG = "README.md", "config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model*.safetensors"  # one file, or the shards of a large model, as transformers names them
ARTEFACT_FILES = ("artefact.json", "artefact.safetensors")
ARTEFACTS = tuple(f"{METHODS_FOLDER}/*/{file}" for file in ARTEFACT_FILES)
PEOPLE_FILES = (PEOPLE_INDEX, BLOBS)
PEOPLE = tuple(f"{METHODS_FOLDER}/*/{file}" for file in PEOPLE_FILES)
PATTERNS = (CARD, CONFIG, PREPROCESSOR, RECORD, METRICS, INDEX, WEIGHTS, *ARTEFACTS, *PEOPLE)


def push(run: Run, options: PushOptions, reporter: Reporter = SILENT) -> str:
    """Publish a run in one commit and return the commit's address.

    Raises:
        UsageError: The run is not complete, nobody is logged in, the repository is public and was to be private, or what concerns single
            people is to be published and that was not said twice.
        OneshuiError: The run holds something that may not be published, or the Hub cannot be reached or refuses.
    """
    _check_people(options)
    run.require_complete()
    with tempfile.TemporaryDirectory(prefix="oneshui-push-") as scratch, hub(options.repo_id, options.revision):
        api, folder = signed_in(), Path(scratch)
        record = stage(
            run, folder, reporter, with_people=options.with_people
        )  # before the repository is made, so that a refusal leaves no trace
        repository = Repository.make(
            api, options.repo_id, kind="model", private=options.private, revision=options.revision, reporter=reporter
        )
        _write_card(folder, record, repository.name)
        return repository.commit(folder, options.commit_message, _ours, reporter)


def _check_people(options: PushOptions) -> None:
    if options.with_people and not options.people_are_personal_data:
        raise UsageError(
            "--with-people publishes what was prepared for each person, encrypted; it is personal data, opens to whoever ever gets the "
            "secrets, and cannot be called back. Say --people-are-personal-data, too, if that is what you want."
        )
    if options.people_are_personal_data and not options.with_people:
        raise UsageError("--people-are-personal-data goes with --with-people; without it nothing of the kind is sent.")


def pull(options: PullOptions, reporter: Reporter = SILENT) -> Run:
    """Fetch a published run; it appears whole and checked, or not at all.

    Raises:
        UsageError: The output folder is in the way, or the name is no repository's.
        OneshuiError: The repository is missing, holds no run, or holds other weights than its record says; or the Hub
            is out of reach.
    """
    path = Path(options.output_dir or RUNS / options.repo_id.rpartition("/")[2])
    claim(path, overwrite=options.overwrite)
    with new_folder(path, replace=options.overwrite) as scratch:
        reporter.info(f"Fetching {options.repo_id}.")
        with hub(options.repo_id, options.revision):
            from huggingface_hub import snapshot_download

            # The list of names keeps pickles and code out, whatever the repository holds.
            names = list(PATTERNS)
            snapshot_download(options.repo_id, revision=options.revision, local_dir=scratch, allow_patterns=names)
        shutil.rmtree(scratch / ".cache", ignore_errors=True)  # the client's notes on its download
        _check_pulled(scratch, options.repo_id)
    return Run.open(path)


def _check_pulled(folder: Path, repo_id: str) -> None:
    if not (folder / RECORD).is_file():
        raise OneshuiError(f"{repo_id} holds no run of oneshui: it has no {RECORD}.")
    record = Run.open(folder).record
    if hash_weights(folder) != record.weights:
        raise OneshuiError(f"The weights of {repo_id} are not those of its record: damaged, or tampered with.")


# The folder that is sent


def stage(run: Run, folder: Path, reporter: Reporter = SILENT, *, with_people: bool = False) -> Record:
    """Write what may be published of a run into an empty folder, but for the card; return the record as published.

    Args:
        run: The run.
        folder: The folder.
        reporter: For warnings.
        with_people: Take what was prepared for single people along, as it is encrypted. Secrets are never taken.

    Raises:
        OneshuiError: The run's weights are not those of its record, or a file holds what may not be published.
    """
    config = public_config(read_json(run.path / CONFIG), run)
    write_json(folder / CONFIG, config)
    write_json(folder / PREPROCESSOR, public_preprocessor(read_json(run.path / PREPROCESSOR)))
    _stage_weights(run, folder)
    private = Private.of(run)
    for source in sorted((run.path / METHODS_FOLDER).glob("*/artefact.json")):
        target = _stage_artefact(source.parent, folder, run, private, reporter)
        if target and with_people:
            _stage_people(source.parent, target)
    if (run.path / METRICS).exists():
        write_json(folder / METRICS, public_metrics(read_json(run.path / METRICS)))
    record = public_record(run.record, config, private, reporter)
    write_record(folder, record)
    return record


def _stage_weights(run: Run, folder: Path) -> None:
    """Copy the weights byte by byte: artefacts are bound to their hash."""
    for file in sorted(run.path.glob(WEIGHTS)):
        _check_metadata(file)
        shutil.copyfile(file, folder / file.name)
    if hash_weights(folder) != run.record.weights:
        raise OneshuiError(f"The weights in {run.path} are not those of its {RECORD}, so they are not published.")
    if (run.path / INDEX).exists():
        index = read_json(run.path / INDEX)
        shards = {name: file for name, file in index["weight_map"].items() if (folder / file).is_file()}
        write_json(folder / INDEX, {"metadata": numbers(index.get("metadata", {})), "weight_map": shards})


def _check_metadata(file: Path) -> list[str]:
    """Return the names of a file's tensors.

    Raises:
        OneshuiError: The file is damaged, or carries text beside them.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as tensors:
            metadata, names = tensors.metadata() or {}, list(tensors.keys())
    except SafetensorError as error:
        raise OneshuiError(f"{file} is damaged ({error}).") from None
    if extra := {key: value for key, value in metadata.items() if (key, value) != ("format", "pt")}:
        raise OneshuiError(f"{file} carries text of its own ({', '.join(sorted(extra))}), so it is not published.")
    return names


def _stage_artefact(source: Path, folder: Path, run: Run, private: Private, reporter: Reporter) -> Path | None:
    """Copy the public half of an artefact and return its new folder, None where it is not published; `people.*` stays."""
    header = read_json(source / ARTEFACT_FILES[0])
    if header.get("method") != source.name or not METHOD_NAME.fullmatch(source.name):
        raise OneshuiError(f"{source} is not the artefact of a method.")
    if header["weights"] != run.record.weights:
        reporter.warn(f"The artefact of '{source.name}' was prepared for other weights, so it is not published.")
        return None
    tensors = _check_metadata(source / ARTEFACT_FILES[1])
    if private.within([*strings(header["values"]), *tensors]):
        raise OneshuiError(
            f"The public half of {source} names a person, a photo or a folder, so nothing was sent; "
            "this is a fault of the method. Remove the artefact to publish the rest."
        )
    public = {
        "format": header["format"],
        "method": header["method"],
        "weights": header["weights"],
        "versions": public_versions(header.get("versions", {})),
        "options": public_method_options(source.name, header["options"], reporter),
        "values": header["values"],
        "report": numbers(header.get("report", {}), private),
    }
    target = folder / METHODS_FOLDER / source.name
    write_json(target / ARTEFACT_FILES[0], public)
    shutil.copyfile(source / ARTEFACT_FILES[1], target / ARTEFACT_FILES[1])
    return target


def _stage_people(source: Path, target: Path) -> None:
    """Copy what concerns single people as it is encrypted: an index of numbers, and blobs under numbers, nothing else."""
    if not any((source / file).exists() for file in PEOPLE_FILES):
        return
    index = public_index(source)
    if strange := [name for name in _check_metadata(source / BLOBS) if not BLOB.fullmatch(name)]:
        raise OneshuiError(f"{source / BLOBS} holds {len(strange)} tensors that are no encrypted ones, so nothing was sent.")
    write_json(target / PEOPLE_INDEX, index)
    shutil.copyfile(source / BLOBS, target / BLOBS)


def _write_card(folder: Path, record: Record, repo_id: str) -> None:
    """Write the card, from what is published and nothing else."""
    from ...card import model_card

    metrics = read_json(folder / METRICS) if (folder / METRICS).exists() else {}
    prepared = [file.parent.name for file in folder.glob(f"{METHODS_FOLDER}/*/{ARTEFACT_FILES[0]}")]
    with_people = any(folder.glob(PEOPLE[0]))
    card = model_card(record, read_json(folder / CONFIG), metrics, repo_id, prepared, with_people=with_people)
    write_bytes(folder / CARD, card.encode())


def _ours(file: str) -> bool:
    """Whether a file in a repository is of a kind that a push writes."""
    return any(fnmatch(file, pattern) and file.count("/") == pattern.count("/") for pattern in PATTERNS)
