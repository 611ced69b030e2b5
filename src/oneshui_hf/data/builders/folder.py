"""Any local folder of photos with a table: `metadata.csv`, or another CSV file, with columns `file_name`, `identity`, and labels."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np

from ...errors import OneshuiError
from ..column_inference import IDENTITY_COLUMNS, IMAGE_COLUMNS, KEY_COLUMN, METADATA, Labels, Table, read_labels, resolve_column
from ..identities import Identities, read_identities
from ..near_names import NearNames
from ..schema import Exclusions, Task
from .annotation_files import read_text_column, read_text_table
from .base import Annotations, FaceBuilder
from .layout import Layout, file_names, hash_files, photo_names

LAYOUT = Layout(
    name="folder",
    home="",
    images=(),
    files=((METADATA,),),
    content=(
        "DIR/metadata.csv with the columns file_name, identity, and one 0/1 column an attribute (or one column of classes), "
        "and the photos, as file_name locates them"
    ),
)


@dataclass
class FolderConfig(datasets.BuilderConfig):  # type: ignore[misc]
    """The table's file name, and its columns of photos, identities and labels; inferred if not given."""

    table: str = METADATA
    image_column: str | None = None
    identity_column: str | None = None
    label_columns: tuple[str, ...] = ()


class Folder(FaceBuilder):
    """A folder with a table of its photos."""

    BUILDER_CONFIG_CLASS = FolderConfig
    summary = "your own folder with metadata.csv (file_name, identity, label columns)"
    needs = "a path as --dataset"
    layout = LAYOUT

    def task(self) -> Task:
        """Return the attributes, or the classes if the only label column has more than two values."""
        return self._labels.task  # from all rows: labels do not depend on missing photos

    @classmethod
    def fingerprint(cls, data_dir: Path | None, table: str = METADATA, image_column: str | None = None) -> str:
        """Return a hash of the table and of the names, sizes and modification times of the photos that it names."""
        folder = _locate(data_dir, table)
        return hash_files([folder / table], [(folder, _named_files(folder, table, image_column))])

    def photos_without_row(self) -> list[str]:
        """Return the photos in the folder that the table does not name."""
        folder = Path(self.config.data_dir)
        return sorted(photo_names(folder) - _named_files(folder, self.config.table, self.config.image_column))

    def annotations(self) -> Annotations:
        """Read all rows with an identity."""
        folder, table, identities = Path(self.config.data_dir), self._table, self._identities
        names, root, existing = table.cells[self._image].tolist(), str(folder), file_names(folder)
        files = _relative_paths(names, root)
        if (row := next((row for row, file in enumerate(files) if file is None), None)) is not None:
            # A file outside could change, or be published, unnoticed.
            near = NearNames(photo_names(folder)).find(names[row])
            what = f"'{near}' is inside; write the names as paths from there" if near else "move the photo there"
            raise OneshuiError(f"{table.where(row)} names {names[row]}, which is outside of {folder}; {what}.")
        keys = self._keys
        return Annotations(
            keys=[keys[row] for row in identities.kept],
            images=[f"{root}/{files[row]}" if files[row] in existing else None for row in identities.kept],
            identities=[identities.names[row] for row in identities.kept],
            labels=self._labels.values,
            exclusions=Exclusions(
                without_identity=[keys[row] for row in np.flatnonzero(~identities.present)],
                notes=[*identities.notes, *self._labels.notes],
            ),
        )

    @cached_property
    def _table(self) -> Table:
        return read_text_table(_locate(self.config.data_dir, self.config.table) / self.config.table)

    @cached_property
    def _image(self) -> str:
        column = self._column(self.config.image_column, IMAGE_COLUMNS, "--image-column", "file names")
        self._table.require_no_empty_cells([column])
        return column

    @cached_property
    def _identity(self) -> str:
        return self._column(self.config.identity_column, IDENTITY_COLUMNS, "--identity-column", "people")

    def _column(self, requested: str | None, common: tuple[str, ...], option: str, content: str) -> str:
        return resolve_column(list(self._table.cells), requested, common, option, content, self._table.name)

    @cached_property
    def _keys(self) -> list[str]:
        """The photo's name in each row: as it is written in `metadata.csv`."""
        cells, names = self._table.cells, self._table.cells[self._image].tolist()
        if self.config.table == METADATA:
            relative = _relative_paths(names, self.config.data_dir)
            return [path if path and posixpath.isabs(name) else name for name, path in zip(names, relative, strict=True)]
        if KEY_COLUMN in cells and cells[KEY_COLUMN].is_unique:
            return cells[KEY_COLUMN].tolist()
        if not any(map(posixpath.isabs, names)):
            return names
        # The names of runs on such tables: they must not contain the folder, which may move.
        short = [posixpath.basename(name) for name in names]  # as `any_dataset` named them
        return short if len(set(short)) == len(short) else [f"train/{row:06d}" for row in range(len(names))]

    @cached_property
    def _identities(self) -> Identities:
        self._reject_duplicates(self._table)
        found = read_identities(self._table, self._identity, self._keys)
        if not found.present.any():
            raise OneshuiError(f"No row of {self._table.name} has an identity in column '{self._identity}'; fill them in.")
        return found

    @cached_property
    def _labels(self) -> Labels:
        table, mine = self._table, {self._image, self._identity} | ({KEY_COLUMN} if self.config.table != METADATA else set())
        candidates = [name for name in table.cells if name not in mine]
        return read_labels(table.take(self._identities.kept), candidates, self.config.label_columns)

    def _reject_duplicates(self, table: Table) -> None:
        names = table.cells[self._image].tolist()
        seen: set[str] = set()
        for row, (name, path) in enumerate(zip(names, _relative_paths(names, str(self.config.data_dir)), strict=True)):
            if (photo := path or name) in seen:
                raise OneshuiError(f"{table.where(row)} contains {name} a second time; remove one of its lines.")
            seen.add(photo)


def _locate(data_dir: str | Path | None, table: str) -> Path:
    return LAYOUT.locate(data_dir) if table == METADATA else Path(str(data_dir))


def _named_files(folder: Path, table: str, image_column: str | None) -> set[str]:
    """Return the paths that a table names. Only one column is read, since this is done at every load."""
    names = read_text_column(
        folder / table, lambda columns: resolve_column(columns, image_column, IMAGE_COLUMNS, "--image-column", "file names", table)
    )
    return set(filter(None, _relative_paths(names, str(folder))))


def _relative_paths(names: Sequence[str], root: str) -> list[str | None]:
    """Return the path of each photo below the folder, or None if it is outside. Links in the path of the folder itself are followed."""
    resolved: dict[str, str] = {}  # folders of absolute paths

    def relative(name: str) -> str | None:
        path = posixpath.normpath(name)
        if not posixpath.isabs(path):
            if path.split("/")[0] != "..":
                return path
            path = posixpath.normpath(f"{root}/{path}")
        if not path.startswith(f"{root}/"):
            folder = posixpath.dirname(path)
            if folder not in resolved:
                resolved[folder] = Path(folder).resolve().as_posix()
            path = f"{resolved[folder]}/{posixpath.basename(path)}"
        return path.removeprefix(f"{root}/") if path.startswith(f"{root}/") else None

    return [relative(name) for name in names]
