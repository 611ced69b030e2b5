"""Reads any table of photos that `datasets.load_dataset` supports: a Hub id, a folder, a Parquet file.

The splits of the table are concatenated, since oneshui splits by identity. Columns are inferred from common names, with a note to the user.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OneshuiError, UsageError
from .builders.layout import photo_names
from .column_inference import IDENTITY_COLUMNS, IMAGE_COLUMNS, KEY_COLUMN, Table, read_labels, resolve_column
from .identities import FLOAT_BITS, read_identities
from .near_names import NearNames, describe_near_names
from .schema import Exclusions, Faces, encode_identities
from .table_files import TABLES, TableFiles

if TYPE_CHECKING:
    import datasets
    import pandas as pd


def read_any_dataset(
    place: str,
    subset: str | None,
    image_column: str | None,
    identity_column: str | None,
    label_columns: Sequence[str],
    revision: str | None = None,
) -> Faces:
    """Read a table of photos.

    Args:
        place: A path or a Hub id.
        subset: Its configuration, if it has several.
        image_column: The column of photos. None: the only column of images, otherwise inferred from its name.
        identity_column: The column of identities. None: inferred from its name.
        label_columns: The columns of labels; inferred if empty.
        revision: Branch, tag or commit of a repository on the Hub; None is its main branch.

    Raises:
        UsageError: A requested column does not exist.
        OneshuiError: The table does not exist, or it has no photos, no people or no labels.
    """
    import torch

    files = TableFiles(place, subset, identity_column, revision)
    splits = files.load()
    dataset = _concatenate(splits, place)
    image = _image_column(dataset, image_column, place)
    cells = _text_columns(dataset, image)
    identity = _identity_column(dataset, image, cells, identity_column, files)
    _require_exact_numbers(dataset, identity, place)
    table = Table(place, cells, lambda row: f"Row {row} (from 0) of {place}")
    rows, near = _resolve_files(_select_images(dataset, image), place)
    has_image, external = _has_image(rows), _hash_external_files(rows, place)
    keys = _photo_keys(cells, rows, has_image, splits)
    found = read_identities(table, identity, keys)
    kept = np.flatnonzero(has_image & found.present)
    if not kept.size:
        raise OneshuiError(f"No row of {place} has both a photo and a person.")
    candidates = [name for name in cells if name not in (identity, KEY_COLUMN)]
    labels = read_labels(table.take(found.kept), candidates, label_columns)
    people, identities = encode_identities([found.names[row] for row in kept])
    inferred = [f"Photos are column '{image}'" * (image_column is None), f"people are column '{identity}'" * (identity_column is None)]
    notes = [f"{', '.join(filter(None, inferred))}.".capitalize()] if any(inferred) else []
    values = labels.values[has_image[found.kept]]
    # Not the fingerprint of the whole, which `datasets` changes when it reads its splits from the cache.
    parts = [f"{name}\0{split._fingerprint}" for name, split in splits.items()]
    fingerprint = hashlib.sha256("\0".join([*parts, image, external]).encode()).hexdigest()[:16]
    cache = Path(dataset.cache_files[0]["filename"]).parent / f"oneshui-{fingerprint}"
    cache.mkdir(exist_ok=True)
    return Faces(
        name=place if not Path(place).exists() else Path(place).stem,
        task=labels.task,
        keys=[keys[row] for row in kept],
        identities=identities,
        people=people,
        labels=torch.from_numpy(values.astype(np.float32) if values.ndim > 1 else values),
        arrow_dataset=rows,
        arrow_rows=kept,
        cache=cache,
        exclusions=Exclusions(
            without_image=[keys[row] for row in np.flatnonzero(~has_image)],
            without_identity=[keys[row] for row in np.flatnonzero(has_image & ~found.present)],
            notes=[*notes, *found.notes, *labels.notes, *near],
        ),
    )


def _identity_column(dataset: datasets.Dataset, image: str, cells: pd.DataFrame, requested: str | None, files: TableFiles) -> str:
    place = files.place
    try:
        # Also columns without one plain value per row, for a message that names the cause.
        names = [*cells, *(name for name in dataset.column_names if name not in cells and name != image)]
        column = resolve_column(names, requested, IDENTITY_COLUMNS, "--identity-column", "people", place)
    except UsageError:
        raise
    except OneshuiError:
        tables = files.ignored_tables()
        if len(cells.columns) and not tables:
            raise
        hint = f" To read the table {tables[0].name}, name it: {tables[0]}." if tables else ""
        raise OneshuiError(f"{place} contains photos, but it has no column '{IDENTITY_COLUMNS[0]}'.{hint}") from None
    if column not in cells:
        raise OneshuiError(f"Column '{column}' of {place} does not hold one text or number per row; write each identity as one text.")
    return column


def _require_exact_numbers(dataset: datasets.Dataset, column: str, place: str) -> None:
    """Check that a floating-point column of identities is exact.

    Raises:
        OneshuiError: It contains a number that is so large that its neighbours are rounded to it.
    """
    import pyarrow.compute as pc

    bits = FLOAT_BITS.get(getattr(dataset.features.get(column), "dtype", ""))
    if bits is None:
        return
    numbers = dataset.data.column(column).cast("float64")
    largest = pc.max(pc.abs(pc.fill_null(numbers, 0))).as_py() or 0
    if largest >= 2**bits:
        raise OneshuiError(
            f"Column '{column}' of {place} stores identities as floating point and contains {largest:.0f}, so people with large numbers "
            "cannot be distinguished; store it as text or as whole numbers."
        )


def _concatenate(splits: dict[str, datasets.Dataset], place: str) -> datasets.Dataset:
    import datasets

    columns = {name: set(split.column_names) for name, split in splits.items()}
    if len(set(map(frozenset, columns.values()))) > 1:
        raise OneshuiError(f"The splits of {place} ({', '.join(columns)}) have different columns, so they cannot be concatenated.")
    return datasets.concatenate_datasets(list(splits.values()))


def _image_column(dataset: datasets.Dataset, requested: str | None, place: str) -> str:
    import datasets

    images = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if requested is None and len(images) == 1:
        return images[0]
    return resolve_column(dataset.column_names, requested, IMAGE_COLUMNS, "--image-column", "photos", place)


def _select_images(dataset: datasets.Dataset, image: str) -> datasets.Dataset:
    """Return a data set with the photos only, as paths or encoded bytes, in a column `image`."""
    import datasets
    import pyarrow as pa

    try:
        photos = dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    except (pa.ArrowException, TypeError, ValueError):
        raise UsageError(f"Column '{image}' does not contain photos; name the column of photos with --image-column.") from None
    return photos if image == "image" else photos.rename_column(image, "image")


def _resolve_files(rows: datasets.Dataset, place: str) -> tuple[datasets.Dataset, list[str]]:
    """Return the photos with relative paths resolved against the table's folder, and a note on names that are nearly right.

    In a folder, a table may be in a subfolder: the folder itself has priority, then the folders of its tables.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.compute as pc

    path = Path(place)
    if not path.exists():
        return rows, []
    home = path.parent if path.is_file() else path
    folders = [home] if path.is_file() else [home, *sorted({file.parent for file in home.glob("*/*") if file.suffix in TABLES})]
    chunks, missing, existing, changed = [], [], [], False
    for chunk in rows.data.column("image").chunks:
        paths = chunk.field("path").to_pylist()
        for row in np.flatnonzero(pc.is_null(chunk.field("bytes")).to_numpy(zero_copy_only=False)).tolist():
            if not (name := paths[row]):
                continue
            if "://" in name:
                raise OneshuiError(f"{place} names the photo {name}, which is an address; download it, and name the file.")
            if not Path(name).is_absolute():
                paths[row], changed = str(_resolve_file(name, folders)), True
            if _exists(paths[row]):
                existing.append(paths[row])
            else:
                missing.append(name)
        encoded = [chunk.field("bytes"), pa.array(paths, pa.string())]
        chunks.append(pa.StructArray.from_arrays(encoded, names=["bytes", "path"], mask=pc.is_null(chunk)))
    near = None
    if missing:
        near = describe_near_names(missing, photo_names(home) - {os.path.relpath(file, home) for file in existing})
    if changed:
        rows = datasets.Dataset(pa.table({"image": pa.chunked_array(chunks)}), info=rows.info)
    return rows, [near] if near else []


def _resolve_file(name: str, folders: Sequence[Path]) -> Path:
    found = [Path(os.path.normpath(folder / name)) for folder in folders]
    return next((file for file in found if _exists(file)), found[0])


def _exists(path: str | Path) -> bool:
    """Return whether a path exists. A name that no file can have does not."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _has_image(rows: datasets.Dataset) -> np.ndarray:
    """Return whether each row has a photo: encoded bytes, or a path."""
    import pyarrow.compute as pc

    found = [
        pc.or_(pc.is_valid(chunk.field("bytes")), pc.is_valid(chunk.field("path"))).to_numpy(zero_copy_only=False)
        & chunk.is_valid().to_numpy(zero_copy_only=False)
        for chunk in rows.data.column("image").chunks
    ]
    return np.concatenate(found)


def _hash_external_files(rows: datasets.Dataset, place: str) -> str:
    """Return a hash of the sizes and modification times of the files that rows name instead of a photo's bytes.

    Raises:
        OneshuiError: A row names a file outside of the table's folder (or, for a data set of the Hub, of the cache): a table from an
            untrusted source could name any file of this machine.
    """
    import pyarrow.compute as pc
    from datasets import config
    from huggingface_hub import constants

    path = Path(place)
    home = path.parent if path.is_file() else path
    roots = [home] if path.exists() else [Path(config.HF_CACHE_HOME), Path(config.HF_DATASETS_CACHE), Path(constants.HF_HUB_CACHE)]
    inside = tuple(f"{root.resolve()}/" for root in roots)
    inside += tuple(f"{root.absolute()}/" for root in roots)
    digest, first = hashlib.sha256(), 0
    for chunk in rows.data.column("image").chunks:
        named = pc.and_(pc.is_null(chunk.field("bytes")), pc.is_valid(chunk.field("path")))
        for row in np.flatnonzero(named.to_numpy(zero_copy_only=False)).tolist():
            file = chunk.field("path")[row].as_py()
            if not os.path.normpath(file).startswith(inside):
                where = f"Row {first + row} (from 0) of {place}"
                near = NearNames(photo_names(home)).find(file) if path.exists() else None
                what = f"'{near}' is inside; write the names as paths from there" if near else "only files inside are read"
                raise OneshuiError(f"{where} names the photo {file}, which is outside of its folder; {what}.")
            with contextlib.suppress(OSError):  # reported as unreadable later
                status = Path(file).stat()
                digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        first += len(chunk)
    return digest.hexdigest()


def _text_columns(dataset: datasets.Dataset, image: str) -> pd.DataFrame:
    """Return all columns with one plain value per row, as text. The fields of a struct are separate columns."""
    import datasets
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    flat = dataset.remove_columns([image]).flatten()
    columns: dict[str, Any] = {}
    for name, feature in flat.features.items():
        column = flat.data.column(name)
        if isinstance(feature, datasets.ClassLabel):
            names = pa.array(feature.names, pa.string())
            column = pc.take(names, pc.if_else(pc.greater_equal(column, 0), column, None))  # -1 means no label
        elif not isinstance(feature, datasets.Value) or feature.dtype in ("binary", "large_binary"):
            continue
        text = pc.fill_null(column.cast(pa.string()), "")
        short = name.removeprefix("labels.")
        columns[name if short in flat.column_names else short] = text.to_pandas()
    return pd.DataFrame(columns)


def _photo_keys(cells: pd.DataFrame, rows: datasets.Dataset, has_image: np.ndarray, splits: dict[str, datasets.Dataset]) -> list[str]:
    """Return a unique name for every row: its key column, its file name, or its split and row number."""
    if KEY_COLUMN in cells and cells[KEY_COLUMN].is_unique:
        return cells[KEY_COLUMN].tolist()
    numbered = [f"{split}/{row:06d}" for split, dataset in splits.items() for row in range(len(dataset))]
    paths = [path for chunk in rows.data.column("image").chunks for path in chunk.field("path").to_pylist()]
    if not all(path for path, photo in zip(paths, has_image.tolist(), strict=True) if photo):
        return numbered
    names = [Path(path).name if path else number for path, number in zip(paths, numbered, strict=True)]
    return names if len(set(names)) == len(names) else numbered
