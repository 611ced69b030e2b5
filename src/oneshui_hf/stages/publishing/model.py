"""Publication of a run on the Hugging Face Hub, and download. Per-identity data is only published with two flags.

    oneshui push RUN USER/NAME
    oneshui pull USER/NAME

Only files on a list of public files are copied into an empty folder, and only that folder is sent. So nothing is published because it was
forgotten to exclude it. They must be regular files inside the run: a link could lead to any file of this machine. (A second name of the
same file, a hard link, is a regular file. Unlike other links, it cannot come with a run from elsewhere.) In the same way, only these files
are downloaded, by their exact names.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import OneshuiError
from ...files import link_or_copy, new_folder, scratch_folder, write_bytes
from ...hub import SPACES, Repository, hub_errors, logged_in_client
from ...methods.artefact import TENSORS, read_header, write_header
from ...methods.identity_store import BLOB, BLOBS, BOUND_TO, HEADER, IdentityStore, discard_with_secrets
from ...methods.identity_store import INDEX as IDENTITY_INDEX
from ...metrics.schema import read_metrics
from ...models.checks import reject_code
from ...public_names import METHOD_NAME
from ...reporting import SILENT, Reporter
from ...runs import (
    CONFIG,
    METRICS,
    PREPROCESSOR,
    RECORD,
    SPLIT,
    Record,
    Run,
    hash_settings,
    hash_weights,
    read_json,
    write_json,
    write_record,
)
from ...runs import METHODS as METHODS_FOLDER
from ...vault import vault_root
from ..checks import check_people_flags, check_pull
from ..recovery import clear_killed_work
from .card_metadata import check_card_options, user_tags
from .difference import base_repository, check_difference, note_publication, public_dataset
from .options import PullOptions, PushOptions
from .redaction import (
    HASH,
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
from .space import check_space, open_space, push_space

CARD = "README.md"
SHARD_INDEX = "model.safetensors.index.json"
WEIGHTS = "model*.safetensors"  # one file, or the shards of a large model, with the names of transformers
ARTEFACT_FILES = (HEADER, TENSORS)
ARTEFACTS = tuple(f"{METHODS_FOLDER}/*/{file}" for file in ARTEFACT_FILES)
IDENTITY_FILES = (IDENTITY_INDEX, BLOBS)
IDENTITIES = tuple(f"{METHODS_FOLDER}/*/{file}" for file in IDENTITY_FILES)
PATTERNS = (CARD, CONFIG, PREPROCESSOR, RECORD, METRICS, SHARD_INDEX, WEIGHTS, *ARTEFACTS, *IDENTITIES)
PUBLISHED = re.compile(
    "|".join(
        re.escape(pattern).replace(re.escape("*"), METHOD_NAME.pattern if "/" in pattern else r"[\w.-]{0,99}") for pattern in PATTERNS
    ),
    re.ASCII,
)


def push(run: Run, options: PushOptions, reporter: Reporter = SILENT) -> str:
    """Publish a run in one commit and return the commit's URL.

    Raises:
        UsageError: The run is not complete, nobody is logged in, the repository is public and a private one was requested, only one of
            the two flags for per-identity data was given, or a related model is public; see `check_difference`.
        OneshuiError: The run contains something that may not be published, or the Hub cannot be reached or denies access.
    """
    check_people_flags(options)
    check_card_options(options)
    check_space(options)
    _require_own_files(run)
    run.require_complete()
    near = run.path.resolve()
    clear_killed_work(near, reporter=reporter)
    with scratch_folder(near.parent, "push") as folder, hub_errors(options.repo_id, options.revision, reporter):
        # Collected first: what may not be published is refused without a login, and before the repository is created.
        record = collect_public_files(run, folder, reporter, with_people=options.with_people)
        _require_public_tags(options, run)
        api = logged_in_client(options.token)
        check_difference(run, options, api, reporter)
        repository = Repository.open_or_create(
            api,
            options.repo_id,
            kind="model",
            private=options.private,
            revision=options.revision,
            reporter=reporter,
            pull_request=options.create_pr,
        )
        space = open_space(api, options.space, repository, reporter) if options.space else None
        sources = {"original": base_repository(run, repository), "dataset_id": public_dataset(run, api)}
        _write_card(folder, record, repository.name, options, sources)
        note_publication(Run.open(run.path), repository.name, reporter, public=repository.public)
        commit = repository.commit(folder, options.commit_message, is_published_file, reporter)
        if space:
            note_publication(Run.open(run.path), SPACES + space.name, reporter, public=space.public)
            reporter.note(f"The Space: {push_space(space, repository, folder, near.parent, is_published_file, reporter)}")
        return commit


def pull(options: PullOptions, reporter: Reporter = SILENT) -> Run:
    """Download a published run. The run folder is created complete and checked, or not at all.

    Raises:
        UsageError: The output folder exists, or the name is not valid for a repository.
        OneshuiError: The repository is missing, does not contain a run, or its weights do not match its record; or the Hub cannot be
            reached.
    """
    path = check_pull(options)
    clear_killed_work(path.resolve(), reporter=reporter)
    with new_folder(path, replace=options.overwrite, discard=discard_with_secrets(vault_root())) as scratch:
        reporter.note(f"Fetching {options.repo_id}.")
        with hub_errors(options.repo_id, options.revision, reporter):
            from huggingface_hub import HfApi, snapshot_download

            # Only listed files: no pickles, no code and no names with `..`, regardless of the contents of the repository.
            found = HfApi(library_name="oneshui").model_info(options.repo_id, revision=options.revision)
            names = [file.rfilename for file in found.siblings or () if is_published_file(file.rfilename)]
            if names:
                snapshot_download(options.repo_id, revision=found.sha, local_dir=scratch, allow_patterns=names)
        shutil.rmtree(scratch / ".cache", ignore_errors=True)  # the client's own metadata about the download
        _check_downloaded_run(scratch, options.repo_id)
        downloaded = Run.open(scratch)
        downloaded.record.publications.clear()  # those of a record from elsewhere are not believed
        note_publication(downloaded, options.repo_id, reporter, public=not found.private)
    return Run.open(path)


def _check_downloaded_run(folder: Path, repo_id: str) -> None:
    if not (folder / RECORD).is_file():
        raise OneshuiError(f"{repo_id} does not contain a run of oneshui: it has no {RECORD}.")
    reject_code(folder, repo_id)
    try:
        downloaded = Run.open(folder)
    except OneshuiError as error:  # it names the temporary folder
        raise OneshuiError(str(error).replace(f"{folder}{os.sep}", f"{repo_id}: ")) from None
    if hash_weights(folder) != downloaded.record.weights:
        raise OneshuiError(f"The weights of {repo_id} do not match its record: they are damaged or were tampered with.")
    try:
        downloaded.require_settings()
    except OneshuiError:
        raise OneshuiError(f"The configuration of {repo_id} does not match its record: it is damaged or was tampered with.") from None


# The folder that is sent


def _require_own_files(run: Run) -> None:
    """Check that what may be published of a run are regular files inside it.

    Raises:
        OneshuiError: One is a link, below a link, or a pipe.
    """
    for file in sorted(file for pattern in PATTERNS for file in run.path.glob(pattern)):
        inside = file.relative_to(run.path)
        for place in (*reversed(inside.parents[:-1]), inside):
            if (run.path / place).is_symlink():
                raise OneshuiError(f"{run.path / place} is a link, so nothing was sent; replace it by what it leads to, or remove it.")
        if not stat.S_ISREG(file.lstat().st_mode):
            raise OneshuiError(f"{file} is not a regular file, so nothing was sent; remove it.")


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
    from ...data.preprocess import read_processor
    from ...models.config_schema import read_config

    config = public_config(read_config(run.path), run)
    _refuse_labels_of_people(config, run)
    write_json(folder / CONFIG, config)
    write_json(folder / PREPROCESSOR, public_preprocessor(read_processor(run.path)))
    _copy_weights(run, folder)
    private = PrivateTerms.of_run(run)
    for source in sorted((run.path / METHODS_FOLDER).glob("*/artefact.json")):
        target = _copy_artefact(source.parent, folder, run, private, reporter)
        if target and with_people:
            _copy_identity_files(source.parent, target)
    if (run.path / METRICS).exists():
        from ...card import OUTDATED_MAP, has_outdated_map

        metrics = read_metrics(run.path)
        if has_outdated_map(metrics):
            reporter.warn(f"{run.path / METRICS}: {OUTDATED_MAP}")
        write_json(folder / METRICS, public_metrics(metrics))
    record = public_record(run.record, config, private, reporter)
    record.settings = hash_settings(folder)
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


def _require_public_tags(options: PushOptions, run: Run) -> None:
    """Check that no tag is the name of an identity, a photo or a folder.

    Raises:
        OneshuiError: One is.
    """
    if PrivateTerms.of_run(run).occurs_in(user_tags(options)):
        raise OneshuiError("--tags contains the name of an identity, a photo or a folder of this run, so nothing was sent; omit it.")


def _copy_weights(run: Run, folder: Path) -> None:
    """Copy the weights unchanged: artefacts refer to their hash."""
    for file in sorted(run.path.glob(WEIGHTS)):
        _tensor_names(file)
        link_or_copy(file, folder / file.name)
    if hash_weights(folder) != run.record.weights:
        raise OneshuiError(f"The weights in {run.path} do not match its {RECORD}, so they are not published.")
    if (run.path / SHARD_INDEX).exists():
        from ...models.weights import read_index

        index = read_index(run.path)
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
    header = read_header(source)
    if header["method"] != source.name or not METHOD_NAME.fullmatch(source.name):
        raise OneshuiError(f"{source} is not the artefact of a method.")
    if header["weights"] != run.record.weights:
        reporter.warn(f"The artefact of '{source.name}' was prepared for other weights, so it is not published.")
        return None
    if header.get("private", False):
        reporter.warn(f"The artefact of '{source.name}' shows data of single identities when compared with others; it is not published.")
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
        "report": keep_numbers(header["report"], private),
        **{name: header[name] for name in (BOUND_TO,) if HASH.fullmatch(header.get(name, ""))},
    }
    target = folder / METHODS_FOLDER / source.name
    target.mkdir(parents=True)
    link_or_copy(source / ARTEFACT_FILES[1], target / ARTEFACT_FILES[1])
    write_header(target, public)
    return target


def _copy_identity_files(source: Path, target: Path) -> None:
    """Copy the encrypted per-identity data: an index of numbers, sealed for the public header, and numbered blobs, nothing else."""
    if not any((source / file).exists() for file in IDENTITY_FILES):
        return
    index = IdentityStore(source, vault_root(), read_header(source)).index_for(read_header(target))
    if unencrypted := [name for name in _tensor_names(source / BLOBS) if not BLOB.fullmatch(name)]:
        raise OneshuiError(f"{source / BLOBS} contains {len(unencrypted)} tensors that are not encrypted, so nothing was sent.")
    write_json(target / IDENTITY_INDEX, index)
    link_or_copy(source / BLOBS, target / BLOBS)


def _write_card(folder: Path, record: Record, repo_id: str, options: PushOptions, sources: Mapping[str, str | None]) -> None:
    """Write the card, from the published files, the options and the repositories of original and data only."""
    from ...card import model_card

    metrics = read_metrics(folder) if (folder / METRICS).exists() else {}
    prepared = [file.parent.name for file in folder.glob(f"{METHODS_FOLDER}/*/{ARTEFACT_FILES[0]}")]
    with_people = any(folder.glob(IDENTITIES[0]))
    card = model_card(
        record,
        read_json(folder / CONFIG),
        metrics,
        repo_id,
        prepared,
        with_people=with_people,
        license=options.license,
        tags=user_tags(options),
        **sources,
    )
    write_bytes(folder / CARD, card.encode())


def is_published_file(file: str) -> bool:
    """Return whether a file in a repository has a name that a push writes."""
    return PUBLISHED.fullmatch(file) is not None
