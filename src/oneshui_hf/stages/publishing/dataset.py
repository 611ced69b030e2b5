"""Publication of a data set: photos, people and labels to the Hub, in the one schema, with a data card.

    oneshui data push USER/NAME --dataset DIR

This is the one command that sends photos, because it was asked to. Even so, names stay: people and photos go by numbers unless
`--keep-names` is given, and photos are written anew, so that nothing travels that a camera has added.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub.utils import validate_repo_id

from ...card import data_card
from ...data.images import ImageError, decode
from ...data.load import load_faces
from ...data.memmap_cache import WORKERS
from ...data.schema import Faces, features
from ...errors import OneshuiError
from ...hub import Repository, hub, signed_in
from ...reporting import SILENT, Reporter
from ...runs import write_bytes
from ..command_options import DataPushOptions

CARD, SHARDS = "README.md", "data/train-*.parquet"
SHARD_BYTES = 400_000_000
BLOCK = 256  # photos that are held at once


def push_data(options: DataPushOptions, reporter: Reporter = SILENT) -> str:
    """Publish a data set in one commit and return the commit's address.

    Raises:
        UsageError: A name or option is wrong, nobody is logged in, or the repository is public and was to be private.
        OneshuiError: The data cannot be read, or the Hub cannot be reached or refuses.
    """
    with hub(options.repo_id, options.revision):
        validate_repo_id(options.repo_id)  # before hours of work
        api = signed_in()
    faces = load_faces(**options.source(), reporter=reporter)
    for note in faces.left_out.sentences():
        reporter.note(note)
    with tempfile.TemporaryDirectory(prefix="oneshui-push-") as scratch, hub(options.repo_id, options.revision):
        folder = Path(scratch)
        sent = stage(faces, folder, keep_names=options.keep_names, reporter=reporter)
        repository = Repository.make(
            api, options.repo_id, kind="dataset", private=options.private, revision=options.revision, reporter=reporter
        )
        card = data_card(sent, repository.name, names_kept=options.keep_names, left_out=len(faces) - len(sent))
        write_bytes(folder / CARD, card.encode())
        return repository.commit(folder, options.commit_message, _ours, reporter)


def _ours(file: str) -> bool:
    """Whether a file in a repository is of a kind that a push writes."""
    return file == CARD or fnmatch(file, SHARDS)


def stage(faces: Faces, folder: Path, *, keep_names: bool, reporter: Reporter = SILENT) -> Faces:
    """Write what is published into an empty folder, but for the card; return the data set without the photos that cannot be read.

    Raises:
        OneshuiError: No photo can be read.
    """
    schema = features(faces.task).arrow_schema
    (folder / "data").mkdir()
    shards: list[Path] = []
    writer: pq.ParquetWriter | None = None
    bad: list[int] = []
    for block, unreadable in _blocks(faces, keep_names, reporter):
        bad += unreadable
        if writer is None or shards[-1].stat().st_size > SHARD_BYTES:
            if writer is not None:
                writer.close()
            shards.append(folder / "data" / f"{len(shards)}.parquet")
            writer = pq.ParquetWriter(shards[-1], schema)
        writer.write_table(block.cast(schema))
    if writer is None or len(bad) == len(faces):
        raise OneshuiError(f"None of the {len(faces)} photos of '{faces.name}' can be read.")
    writer.close()
    for number, shard in enumerate(shards):
        shard.rename(shard.with_name(f"train-{number:05d}-of-{len(shards):05d}.parquet"))
    if bad:
        reporter.warn(f"{len(bad)} photos cannot be read and are left out; `oneshui data check` lists them.")
    return faces.without(np.array(bad, dtype=np.int64))


def _blocks(faces: Faces, keep_names: bool, reporter: Reporter) -> Iterator[tuple[pa.Table, list[int]]]:
    """Yield the rows in blocks, each with the stored rows of those left out since they cannot be read.

    Without names, people and photos are numbered and sent in an order that nobody knows: by the order of their names, whoever has a list
    of them could undo the numbers. The one draw that no seed repeats.
    """
    width, secret = len(str(len(faces))), np.random.default_rng()
    order = np.arange(len(faces)) if keep_names else secret.permutation(len(faces))
    number = secret.permutation(len(faces.people))
    with ThreadPoolExecutor(WORKERS) as pool:
        for start in reporter.track(range(0, len(faces), BLOCK), "Writing photos"):
            rows = order[start : start + BLOCK].tolist()
            images = dict(zip(rows, pool.map(lambda row: _png(faces.image(int(faces.stored[row]))), rows), strict=True))
            good = [row for row in rows if images[row] is not None]
            keys = [faces.keys[row] if keep_names else f"{start + place:0{width}d}.png" for place, row in enumerate(rows) if row in good]
            people = [faces.people[faces.identities[row]] if keep_names else str(number[faces.identities[row]]) for row in good]
            table = pa.table(
                {
                    "key": pa.array(keys, pa.string()),
                    "image": pa.array([{"bytes": images[row], "path": None} for row in good], _IMAGE),
                    "identity": pa.array(people, pa.string()),
                    "labels": _labels(faces, good),
                }
            )
            yield table, [int(faces.stored[row]) for row in rows if images[row] is None]


_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _labels(faces: Faces, rows: list[int]) -> pa.Array:
    labels: Any = faces.labels[rows].numpy()
    if faces.task.kind == "single_label":
        return pa.array(labels)
    columns = [pa.array(labels[:, k].astype(np.int8)) for k in range(labels.shape[1])]
    return pa.StructArray.from_arrays(columns, names=list(faces.task.label_names))


def _png(image: str | bytes) -> bytes | None:
    """Return the photo as models see it and nothing else, or None where it cannot be read."""
    try:
        photo = decode(image, "it")
    except ImageError:
        return None
    photo.info.clear()
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    return buffer.getvalue()
