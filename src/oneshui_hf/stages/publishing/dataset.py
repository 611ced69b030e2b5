"""Publication of a data set: photos, identities and labels to the Hub, in the common schema, with a data card.

    oneshui data push USER/NAME --dataset DIR

This is the only command that sends photos. Names are not sent: identities and photos are numbered unless `--keep-names` is given, and
photos are encoded again, so that no metadata of the camera is published. Photos of a folder must be inside it: a link could lead to any
photo of this machine.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub.utils import validate_repo_id

from ...cache import cache_root
from ...card import data_card
from ...data.identity_labels import describe_labels, labels_of_one_identity, names_people, publish_people
from ...data.images import ImageError, decode
from ...data.load import load_faces
from ...data.memmap_cache import WORKERS
from ...data.schema import Faces, dataset_features
from ...errors import OneshuiError
from ...files import clear_leftovers, scratch_folder, write_bytes
from ...hub import Repository, hub_errors, logged_in_client
from ...plugins import DATASETS, Plugins
from ...reporting import SILENT, Reporter
from .options import DataPushOptions

CARD, SHARDS = "README.md", "data/train-*.parquet"
SCRATCH = "push"  # in the cache: the folder that is sent
SHARD_BYTES = 400_000_000
BLOCK = 256  # photos in memory at a time


def push_data(options: DataPushOptions, reporter: Reporter = SILENT) -> str:
    """Publish a data set in one commit and return the commit's URL.

    Raises:
        UsageError: A name or option is invalid, nobody is logged in, or the repository is public and a private one was requested.
        OneshuiError: The data cannot be read, or the Hub cannot be reached or denies access.
    """
    with hub_errors(options.repo_id, options.revision):
        validate_repo_id(options.repo_id)  # checked before the data is read, which can take hours
        api = logged_in_client()
    faces = load_faces(**options.source(), reporter=reporter)
    for note in [*faces.exclusions.messages(), describe_labels(faces)]:
        reporter.note(note)
    _require_own_photos(faces, options)
    near = cache_root() / SCRATCH
    clear_leftovers(near)
    with scratch_folder(near, "data") as folder, hub_errors(options.repo_id, options.revision, reporter):
        published = collect_dataset_files(faces, folder, keep_names=options.keep_names, reporter=reporter)
        repository = Repository.open_or_create(
            api, options.repo_id, kind="dataset", private=options.private, revision=options.revision, reporter=reporter
        )
        card = data_card(published, repository.name, names_kept=options.keep_names, left_out=len(faces) - len(published))
        write_bytes(folder / CARD, card.encode())
        return repository.commit(folder, options.commit_message, is_published_file, reporter)


def _require_own_photos(faces: Faces, options: DataPushOptions) -> None:
    """Check that the photos of a folder are inside it, also where links lead elsewhere.

    Raises:
        OneshuiError: One is not.
    """
    place = Path(options.data_dir or options.dataset)
    if not place.exists() or (options.data_dir is None and options.dataset in Plugins(DATASETS).names):
        return
    root, resolved = (place.parent if place.is_file() else place).resolve(), dict[str, Path]()
    for row in faces.arrow_rows.tolist():
        photo = faces.encoded_image(row)
        if isinstance(photo, bytes):
            continue
        parent, name = os.path.split(photo)
        folder = resolved.setdefault(parent, Path(parent).resolve())
        if not (folder / name).is_symlink() and folder.is_relative_to(root):
            continue
        if not (folder / name).resolve().is_relative_to(root):
            raise OneshuiError(
                f"Photo {photo} is a link to a place outside of {root}, so nothing was sent; copy the photo into the folder."
            )


def is_published_file(file: str) -> bool:
    """Return whether a file in a repository has a name that a push writes."""
    return file == CARD or fnmatch(file, SHARDS)


def collect_dataset_files(faces: Faces, folder: Path, *, keep_names: bool, reporter: Reporter = SILENT) -> Faces:
    """Write the published files, except the card, into an empty folder; return the data set without unreadable photos.

    Raises:
        OneshuiError: No photo can be read, or the labels name people.
    """
    is_people = names_people(faces, labels_of_one_identity(faces))
    if not keep_names and publish_people(faces.task.label_names, faces.people, is_people=is_people):
        raise OneshuiError(
            f"Labels of '{faces.name}' are names of its people, who would be numbered in vain, so nothing was sent; choose other "
            "--label-columns, or publish the names with --keep-names."
        )
    schema = dataset_features(faces.task).arrow_schema
    (folder / "data").mkdir()
    shards: list[Path] = []
    writer: pq.ParquetWriter | None = None
    unreadable: list[int] = []
    for block, rows in _blocks(faces, keep_names, reporter):
        unreadable += rows
        if writer is None or shards[-1].stat().st_size > SHARD_BYTES:
            if writer is not None:
                writer.close()
            shards.append(folder / "data" / f"{len(shards)}.parquet")
            writer = pq.ParquetWriter(shards[-1], schema)
        writer.write_table(block.cast(schema))
    if writer is None or len(unreadable) == len(faces):
        raise OneshuiError(f"None of the {len(faces)} photos of '{faces.name}' can be read.")
    writer.close()
    for number, shard in enumerate(shards):
        shard.rename(shard.with_name(f"train-{number:05d}-of-{len(shards):05d}.parquet"))
    if unreadable:
        reporter.warn(f"{len(unreadable)} photos cannot be read and are left out; `oneshui data check` lists them.")
    return faces.drop_rows(np.array(unreadable, dtype=np.int64))


def _blocks(faces: Faces, keep_names: bool, reporter: Reporter) -> Iterator[tuple[pa.Table, list[int]]]:
    """Yield the rows in blocks, each with the stored rows of unreadable photos, which are left out.

    Without names, identities and photos are numbered and sent in a secret random order: numbers in the order of the names could be
    reversed with a list of the names. Therefore this is the only random number without a seed.
    """
    width, secret_rng = len(str(len(faces))), np.random.default_rng()
    order = np.arange(len(faces)) if keep_names else secret_rng.permutation(len(faces))
    number = secret_rng.permutation(len(faces.people))
    with ThreadPoolExecutor(WORKERS) as pool:
        for start in reporter.track(range(0, len(faces), BLOCK), "Writing photos"):
            rows = order[start : start + BLOCK].tolist()
            images = dict(zip(rows, pool.map(lambda row: _png(faces.encoded_image(int(faces.arrow_rows[row]))), rows), strict=True))
            readable = [row for row in rows if images[row] is not None]
            keys = [faces.keys[row] if keep_names else f"{start + i:0{width}d}.png" for i, row in enumerate(rows) if row in readable]
            people = [faces.people[faces.identities[row]] if keep_names else str(number[faces.identities[row]]) for row in readable]
            table = pa.table(
                {
                    "key": pa.array(keys, pa.string()),
                    "image": pa.array([{"bytes": images[row], "path": None} for row in readable], _IMAGE),
                    "identity": pa.array(people, pa.string()),
                    "labels": _labels(faces, readable),
                }
            )
            yield table, [int(faces.arrow_rows[row]) for row in rows if images[row] is None]


_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _labels(faces: Faces, rows: list[int]) -> pa.Array:
    labels: Any = faces.labels[rows].numpy()
    if faces.task.kind == "single_label":
        return pa.array(labels)
    columns = [pa.array(labels[:, k].astype(np.int8)) for k in range(labels.shape[1])]
    return pa.StructArray.from_arrays(columns, names=list(faces.task.label_names))


def _png(image: str | bytes) -> bytes | None:
    """Return the pixels of a photo as PNG without metadata; None if it cannot be read."""
    try:
        photo = decode(image, "image")
    except ImageError:
        return None
    photo.info.clear()
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    return buffer.getvalue()
