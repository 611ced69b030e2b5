"""Any local folder of photos with a `metadata.csv`: columns `file_name`, `identity`, and labels."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets

from ...errors import OneshuiError
from ..column_inference import IDENTITY_COLUMNS, IMAGE_COLUMNS, METADATA, Labels, Table, read_labels, resolve_column
from ..images import SUFFIXES
from ..schema import Exclusions, Task
from .annotation_files import read_text_table
from .base import Annotations, FaceBuilder
from .layout import Layout, file_names, hash_files

LAYOUT = Layout(
    name="folder",
    home="",
    images=(),
    files=((METADATA,),),
    tree="""\
  DIR/metadata.csv     columns file_name, identity, and one 0/1 column an attribute (or one column of classes)
  DIR/...              the photos, as file_name locates them""",
)


@dataclass
class FolderConfig(datasets.BuilderConfig):  # type: ignore[misc]
    """The columns of photos, identities and labels; inferred if not given."""

    image_column: str | None = None
    identity_column: str | None = None
    label_columns: tuple[str, ...] = ()


class Folder(FaceBuilder):
    """A folder with `metadata.csv`."""

    BUILDER_CONFIG_CLASS = FolderConfig
    summary = "your own folder with metadata.csv (file_name, identity, label columns)"
    needs = "a path as --dataset"
    layout = LAYOUT

    def task(self) -> Task:
        """Return the attributes, or the classes if the only label column has more than two values."""
        return self._labels.task  # from all rows: labels do not depend on missing photos

    @classmethod
    def fingerprint(cls, data_dir: Path | None) -> str:
        """Return a hash of the metadata and of the images' names, sizes and modification times."""
        folder = LAYOUT.locate(data_dir)
        return hash_files([folder / METADATA], [folder])

    def annotations(self) -> Annotations:
        """Read all rows."""
        folder, table = Path(self.config.data_dir), self._table
        keys, root, existing = table.cells[self._image].tolist(), str(folder), file_names(folder)
        files = [posixpath.normpath(key) for key in keys]
        outside = (row for row, file in enumerate(files) if posixpath.isabs(file) or file.split("/")[0] == "..")
        if (row := next(outside, None)) is not None:  # a file outside could change, or be published, unnoticed
            raise OneshuiError(f"{table.where(row)} names {keys[row]}, which is outside of {folder}; move the photo there.")
        photos = {name for name in existing if name.lower().endswith(SUFFIXES)}
        return Annotations(
            keys=keys,
            images=[f"{root}/{file}" if file in existing else None for file in files],
            identities=table.cells[self._identity].str.strip().tolist(),
            labels=self._labels.values,
            exclusions=Exclusions(without_row=sorted(photos - set(files)), notes=self._labels.notes),
        )

    @cached_property
    def _table(self) -> Table:
        return read_text_table(LAYOUT.locate(self.config.data_dir) / METADATA)

    @cached_property
    def _image(self) -> str:
        return self._column(self.config.image_column, IMAGE_COLUMNS, "--image-column", "file names")

    @cached_property
    def _identity(self) -> str:
        return self._column(self.config.identity_column, IDENTITY_COLUMNS, "--identity-column", "people")

    def _column(self, requested: str | None, common: tuple[str, ...], option: str, content: str) -> str:
        table = self._table
        column = resolve_column(list(table.cells), requested, common, option, content, table.name)
        table.require_no_empty_cells([column])
        return column

    @cached_property
    def _labels(self) -> Labels:
        table = self._table
        self._reject_duplicates(table)
        candidates = [name for name in table.cells if name not in (self._image, self._identity)]
        return read_labels(table, candidates, self.config.label_columns)

    def _reject_duplicates(self, table: Table) -> None:
        names = table.cells[self._image]
        duplicates = names.duplicated().to_numpy().nonzero()[0]
        if duplicates.size:
            raise OneshuiError(f"{table.where(duplicates[0])} contains {names[duplicates[0]]} a second time; remove one of its lines.")
