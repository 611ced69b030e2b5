"""Any local folder of photos with a `metadata.csv`: columns `file_name`, `identity`, and labels."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets

from ...errors import OneshuiError
from ..column_inference import IMAGES, METADATA, PEOPLE, Labels, Table, one_column, read_labels
from ..images import SUFFIXES
from ..schema import LeftOut, Task
from .annotation_files import read_words
from .base import Annotations, FaceBuilder
from .layout import Layout, hash_files, names_in

LAYOUT = Layout(
    name="folder",
    home="",
    images=(),
    files=((METADATA,),),
    tree="""\
  DIR/metadata.csv     columns file_name, identity, and one 0/1 column an attribute (or one column of classes)
  DIR/...              the photos, where file_name says""",
)


@dataclass
class FolderConfig(datasets.BuilderConfig):  # type: ignore[misc]
    """Which columns are what; guessed where not given."""

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
        """Return the attributes, or the classes where the one label column holds more than two values."""
        return self._labels.task  # of all rows: labels do not depend on which photos are there

    @classmethod
    def fingerprint(cls, data_dir: Path | None) -> str:
        """Return a hash of the metadata and of the images' names, sizes and times of change."""
        folder = LAYOUT.locate(data_dir)
        return hash_files([folder / METADATA], [folder])

    def annotations(self) -> Annotations:
        """Read all rows."""
        folder, table = Path(self.config.data_dir), self._table
        keys, place, there = table.cells[self._image].tolist(), str(folder), names_in(folder)
        files = [posixpath.normpath(key) for key in keys]
        outside = (row for row, file in enumerate(files) if posixpath.isabs(file) or file.split("/")[0] == "..")
        if (row := next(outside, None)) is not None:  # what lies elsewhere could change, or be published, without notice
            raise OneshuiError(f"{table.where(row)} names {keys[row]}, which lies outside {folder}; move the photo there.")
        photos = {name for name in there if name.lower().endswith(SUFFIXES)}
        return Annotations(
            keys=keys,
            images=[f"{place}/{file}" if file in there else None for file in files],
            identities=table.cells[self._person].str.strip().tolist(),
            labels=self._labels.values,
            left_out=LeftOut(without_row=sorted(photos - set(files)), notes=self._labels.notes),
        )

    @cached_property
    def _table(self) -> Table:
        return read_words(LAYOUT.locate(self.config.data_dir) / METADATA)

    @cached_property
    def _image(self) -> str:
        return self._column(self.config.image_column, IMAGES, "--image-column", "file names")

    @cached_property
    def _person(self) -> str:
        return self._column(self.config.identity_column, PEOPLE, "--identity-column", "people")

    def _column(self, wanted: str | None, usual: tuple[str, ...], option: str, what: str) -> str:
        table = self._table
        column = one_column(list(table.cells), wanted, usual, option, what, table.name)
        table.require_filled([column])
        return column

    @cached_property
    def _labels(self) -> Labels:
        table = self._table
        self._refuse_twice(table)
        candidates = [name for name in table.cells if name not in (self._image, self._person)]
        return read_labels(table, candidates, self.config.label_columns)

    def _refuse_twice(self, table: Table) -> None:
        names = table.cells[self._image]
        twice = names.duplicated().to_numpy().nonzero()[0]
        if twice.size:
            raise OneshuiError(f"{table.where(twice[0])} names {names[twice[0]]} a second time; remove one of its lines.")
