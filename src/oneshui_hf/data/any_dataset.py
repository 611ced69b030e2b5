"""Any table of photos that `datasets.load_dataset` reads: a Hub id, a folder, a Parquet file.

All its parts are pooled: people, not rows, are split here. Which column is what is told by usual names, and said.
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
from ..hub import hub
from .column_inference import IMAGES, KEY, PEOPLE, Table, one_column, read_labels
from .schema import Faces, LeftOut, number_people

if TYPE_CHECKING:
    import datasets
    import pandas as pd


def read_any(place: str, subset: str | None, image_column: str | None, identity_column: str | None, label_columns: Sequence[str]) -> Faces:
    """Read a table of photos.

    Args:
        place: A path or a Hub id.
        subset: Its configuration, where it has several.
        image_column: Which column is the photo; the one of images where None.
        identity_column: Which column is the person; told by its name where None.
        label_columns: Which columns are labels; guessed where empty.

    Raises:
        UsageError: A column that was asked for does not exist.
        OneshuiError: There is no such table, or it has no photos, no people or no labels.
    """
    import torch

    parts = _load(place, subset)
    dataset = _pooled(parts, place)
    image = _image_column(dataset, image_column, place)
    cells = _cells(dataset, image)
    table = Table(place, cells, lambda row: f"Row {row} (from 0) of {place}")
    person = one_column(list(cells), identity_column, PEOPLE, "--identity-column", "people", place)
    labels = read_labels(table, [name for name in cells if name not in (person, KEY)], label_columns)
    rows = _photo_column(dataset, image)
    there, files = _present(rows), _files(rows, place)
    named = (cells[person].str.strip() != "").to_numpy()
    keys = _keys(cells, rows, there, parts)
    kept = np.flatnonzero(there & named)
    if not kept.size:
        raise OneshuiError(f"No row of {place} has both a photo and a person.")
    people, identities = number_people(cells[person].str.strip().iloc[kept].tolist())
    guessed = [f"Photos are column '{image}'" * (image_column is None), f"people are column '{person}'" * (identity_column is None)]
    notes = [f"{', '.join(filter(None, guessed))}.".capitalize()] if any(guessed) else []
    values = labels.values[kept]
    fingerprint = hashlib.sha256(f"{dataset._fingerprint}\0{image}\0{files}".encode()).hexdigest()[:16]
    cache = Path(dataset.cache_files[0]["filename"]).parent / f"oneshui-{fingerprint}"
    cache.mkdir(exist_ok=True)
    return Faces(
        name=place if not Path(place).exists() else Path(place).stem,
        task=labels.task,
        keys=[keys[row] for row in kept],
        identities=identities,
        people=people,
        labels=torch.from_numpy(values.astype(np.float32) if values.ndim > 1 else values),
        rows=rows,
        stored=kept,
        cache=cache,
        left_out=LeftOut(
            without_image=[keys[row] for row in np.flatnonzero(~there)],
            without_identity=[keys[row] for row in np.flatnonzero(there & ~named)],
            notes=[*notes, *labels.notes],
        ),
    )


def _load(place: str, subset: str | None) -> dict[str, datasets.Dataset]:
    import datasets
    from datasets.exceptions import DatasetsError

    path, bars, verbosity = Path(place), datasets.utils.logging.is_progress_bar_enabled(), datasets.utils.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)  # what fails is told below, in one sentence
    try:
        with hub(place, None):
            if path.is_file():
                return dict(datasets.load_dataset(str(path.parent), data_files=path.name))
            return dict(datasets.load_dataset(place, subset))
    except OneshuiError as error:
        raise type(error)(f"There is no folder {place}, and as a data set of the Hub: {error}") from None
    except (DatasetsError, FileNotFoundError, ValueError) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0].rstrip(".")
        if path.is_dir():
            raise OneshuiError(f"{place} holds no metadata.csv, nor a table that can be read ({reason}).") from None
        what = f"{path.name} cannot be read as a table" if path.exists() else f"There is no folder and no data set '{place}'"
        raise OneshuiError(f"{what} ({reason}).") from None
    finally:
        datasets.utils.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


def _pooled(parts: dict[str, datasets.Dataset], place: str) -> datasets.Dataset:
    import datasets

    columns = {name: set(part.column_names) for name, part in parts.items()}
    if len(set(map(frozenset, columns.values()))) > 1:
        raise OneshuiError(f"The parts of {place} ({', '.join(columns)}) have different columns, so they cannot be pooled.")
    return datasets.concatenate_datasets(list(parts.values()))


def _image_column(dataset: datasets.Dataset, wanted: str | None, place: str) -> str:
    import datasets

    images = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if wanted is None and len(images) == 1:
        return images[0]
    return one_column(dataset.column_names, wanted, IMAGES, "--image-column", "photos", place)


def _photo_column(dataset: datasets.Dataset, image: str) -> datasets.Dataset:
    """Return the photos alone, as paths or encoded bytes, in a column `image`."""
    import datasets
    import pyarrow as pa

    try:
        photos = dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    except (pa.ArrowException, TypeError, ValueError):
        raise UsageError(f"Column '{image}' holds no photos; name the column that does with --image-column.") from None
    return photos if image == "image" else photos.rename_column(image, "image")


def _present(rows: datasets.Dataset) -> np.ndarray:
    """Whether each row has a photo: its bytes, or a path."""
    import pyarrow.compute as pc

    found = [
        pc.or_(pc.is_valid(chunk.field("bytes")), pc.is_valid(chunk.field("path"))).to_numpy(zero_copy_only=False)
        & chunk.is_valid().to_numpy(zero_copy_only=False)
        for chunk in rows.data.column("image").chunks
    ]
    return np.concatenate(found)


def _files(rows: datasets.Dataset, place: str) -> str:
    """Return a hash of the sizes and times of change of the files that rows name in place of a photo's bytes.

    Raises:
        OneshuiError: A row names a file outside of the table's own folder (or, for a data set of the Hub, of the cache): a stranger's
            table could name any file of this machine.
    """
    import pyarrow.compute as pc
    from datasets import config
    from huggingface_hub import constants

    path = Path(place)
    home = path.parent if path.is_file() else path
    roots = [home] if path.exists() else [Path(config.HF_CACHE_HOME), Path(config.HF_DATASETS_CACHE), Path(constants.HF_HUB_CACHE)]
    inside = tuple(f"{root.resolve()}/" for root in roots)
    digest, first = hashlib.sha256(), 0
    for chunk in rows.data.column("image").chunks:
        named = pc.and_(pc.is_null(chunk.field("bytes")), pc.is_valid(chunk.field("path")))
        for row in np.flatnonzero(named.to_numpy(zero_copy_only=False)).tolist():
            file = chunk.field("path")[row].as_py()
            if not os.path.normpath(file).startswith(inside):
                where = f"Row {first + row} (from 0) of {place}"
                raise OneshuiError(f"{where} names the photo {file}, which lies outside of it; only files below it are read.")
            with contextlib.suppress(OSError):  # counts as unreadable later
                status = Path(file).stat()
                digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        first += len(chunk)
    return digest.hexdigest()


def _cells(dataset: datasets.Dataset, image: str) -> pd.DataFrame:
    """Return all columns that hold one plain value a row, as text; the fields of a struct are columns of their own."""
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
            column = pc.take(names, pc.if_else(pc.greater_equal(column, 0), column, None))  # -1 stands for no label
        elif not isinstance(feature, datasets.Value) or feature.dtype in ("binary", "large_binary"):
            continue
        text = pc.fill_null(column.cast(pa.string()), "")
        short = name.removeprefix("labels.")
        columns[name if short in flat.column_names else short] = text.to_pandas()
    return pd.DataFrame(columns)


def _keys(cells: pd.DataFrame, rows: datasets.Dataset, there: np.ndarray, parts: dict[str, datasets.Dataset]) -> list[str]:
    """Return a name for every row: the table's own, its file's, or its part and place."""
    if KEY in cells and cells[KEY].is_unique:
        return cells[KEY].tolist()
    numbered = [f"{part}/{row:06d}" for part, dataset in parts.items() for row in range(len(dataset))]
    paths = [path for chunk in rows.data.column("image").chunks for path in chunk.field("path").to_pylist()]
    if not all(path for path, photo in zip(paths, there.tolist(), strict=True) if photo):
        return numbered
    names = [Path(path).name if path else number for path, number in zip(paths, numbered, strict=True)]
    return names if len(set(names)) == len(names) else numbered
