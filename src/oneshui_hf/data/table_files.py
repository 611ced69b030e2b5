"""Loads a table with `datasets.load_dataset`: from its files on disk, or from the Hub.

`datasets` finds the files of a folder with patterns. A folder's own name must not be part of a pattern (`set [1]`), and files in the
folders of runs must not count. Therefore the files are listed here, and `datasets` gets their paths.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OneshuiError, first_line, is_disk_full
from ..hub import hub_errors
from .builders.layout import walk_files
from .column_inference import IDENTITY_COLUMNS, resolve_column
from .quiet import quiet

if TYPE_CHECKING:
    import datasets

TABLES = (".parquet", ".json", ".jsonl", ".csv", ".tsv", ".arrow")
PHOTO_TABLES = (".parquet", ".arrow")  # tables that may contain the photos
MAX_REASON = 200  # characters of a library's message
PATTERN_CHARACTERS = re.compile(r"[*?\[\]]|::")
CONFIGS = re.compile(r"\A---\s*$.*?^configs:.*?^---\s*$", re.MULTILINE | re.DOTALL)  # in a README.md that lists the files itself


@dataclass
class TableFiles:
    """A table on disk or on the Hub.

    Its files may store identities in different types, which `datasets` converts to the type of the first file: 011 in one file would become
    the 11 of another. Therefore such a column is read as text.

    Attributes:
        place: A path or a Hub id.
        subset: Its configuration, if it has several.
        identity: The identity column; None if it is inferred from its name.
        revision: Branch, tag or commit on the Hub; None is the main branch.
    """

    place: str
    subset: str | None
    identity: str | None
    revision: str | None = None

    def ignored_tables(self) -> list[Path]:
        """Return the tables in a folder of which `datasets` reads the photos only."""
        if self._module != "imagefolder":
            return []
        return sorted(file for file in Path(self.place).iterdir() if file.suffix.lower() in TABLES and file.stem != "metadata")

    def load(self) -> dict[str, datasets.Dataset]:
        """Return the splits of the table.

        Raises:
            OneshuiError: The table does not exist or cannot be read.
        """
        return self._report(self._load_all)

    def _load_all(self) -> dict[str, datasets.Dataset]:
        import datasets

        if self._module == "csv":
            return self._load(self._csv_features())
        if self._module == "parquet":
            return self._load(self._parquet_features())
        splits = self._load(None)
        if self._module == "json":  # the type of a row is only known after reading
            features = next(iter(splits.values())).features
            column = self._identity_column(list(features))
            if column and isinstance(features[column], datasets.Value) and features[column].dtype != "string":
                return self._load(datasets.Features({**features, column: datasets.Value("string")}))
        return splits

    def _parquet_features(self) -> datasets.Features | None:
        import datasets
        import pyarrow.parquet as pq

        schemas = [pq.read_schema(file) for found in (self._files or {}).values() for file in found]
        column = self._identity_column(schemas[0].names)
        if not column or len({schema.field(column).type for schema in schemas if column in schema.names}) == 1:
            return None
        return datasets.Features({**datasets.Features.from_arrow_schema(schemas[0]), column: datasets.Value("string")})

    def _identity_column(self, names: Sequence[str]) -> str | None:
        """Return the identity column; None if it is not found, which is reported later."""
        try:
            return resolve_column(names, self.identity, IDENTITY_COLUMNS, "", "", "")
        except OneshuiError:
            return None

    def _load(self, features: datasets.Features | None) -> dict[str, datasets.Dataset]:
        import datasets

        path = Path(self.place)
        options: dict[str, Any] = {"features": features} if features is not None else {}
        if self._files is None:
            return dict(datasets.load_dataset(self.place, self.subset, revision=self.revision, **options))
        folder, subset = (path.parent, None) if path.is_file() else (path, self.subset)
        return dict(datasets.load_dataset(str(folder), subset, data_files=_data_files(self._files), **options))

    @cached_property
    def _files(self) -> dict[str, list[str]] | None:
        """The files of each split of a local table; None if `datasets` finds them."""
        path = Path(self.place)
        if path.is_file():
            return {"train": [str(path)]}
        if not path.is_dir():
            return None
        if self._lists_its_files(path) and not PATTERN_CHARACTERS.search(str(path)):
            return None
        return _of_one_kind(_files_by_split(path))

    def _lists_its_files(self, folder: Path) -> bool:
        readme = folder / "README.md"
        return readme.is_file() and CONFIGS.search(readme.read_text(encoding="utf-8", errors="replace")) is not None

    @cached_property
    def _module(self) -> str | None:
        """The kind of the table's files: "csv", "json", "parquet", ... None if unknown."""
        from datasets.load import infer_module_for_data_files

        if self._files is None:
            return None
        module: str | None = infer_module_for_data_files(_data_files(self._files))[0]
        return module

    def _csv_features(self) -> datasets.Features:
        """Return the type text for all columns: 011 is not 11, and an empty cell does not make the others decimal numbers."""
        import datasets
        import pandas as pd

        file = next(file for found in (self._files or {}).values() for file in found)
        names = pd.read_csv(file, nrows=0, sep="\t" if Path(file).suffix.lower() == ".tsv" else ",", encoding="utf-8-sig").columns
        return datasets.Features(dict.fromkeys(names, datasets.Value("string")))

    def _report(self, read: Callable[[], Any]) -> Any:
        """Call a function that reads the table. Errors are raised in one sentence."""
        import datasets

        path, library_logging = Path(self.place), datasets.utils.logging
        try:
            with quiet(library_logging, library_logging.CRITICAL), hub_errors(self.place, self.revision):
                return read()
        except OneshuiError as error:
            raise type(error)(f"Folder {self.place} does not exist, and as a data set of the Hub: {error}") from None
        except Exception as error:  # of a library for one of twenty file formats
            if is_disk_full(error):
                raise
            reason = _shorten(first_line(error.__cause__ or error))
            if path.is_file() and not path.stat().st_size:
                reason = "it is empty"
            elif path.exists() and "::" in str(path.resolve()):
                reason = "`datasets` reads :: in a path as an address; rename the folder"
            if path.is_dir():
                raise OneshuiError(f"{path} contains neither metadata.csv nor a readable table ({reason}).") from None
            what = f"{path.name} cannot be read as a table" if path.exists() else f"'{self.place}' is neither a folder nor a data set"
            raise OneshuiError(f"{what} ({reason}).") from None


def _shorten(text: str) -> str:
    """Return a library's message without its end, which lists all file formats."""
    text = re.sub(r"( with any supported extension)? \['\..*", "", text).rstrip(".")
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}..."


def _data_files(files: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return the files for `datasets`, with their modification times, which are part of its fingerprint."""
    from datasets.data_files import DataFilesDict, DataFilesList

    def with_times(found: list[str]) -> Any:
        return DataFilesList(found, [(str(Path(file).stat().st_mtime),) for file in found])

    return DataFilesDict({split: with_times(found) for split, found in files.items()})


def _files_by_split(folder: Path) -> dict[str, list[str]]:
    """Return the files that the patterns of `datasets` find for each split, without those of runs."""
    from datasets.data_files import DataFilesDict, get_data_patterns

    everything = [name for name, _ in walk_files(folder)]
    names = [name for name, _ in walk_files(folder, skip_runs=True)]
    if len(names) == len(everything) and not PATTERN_CHARACTERS.search(str(folder)):
        base = folder.resolve().as_posix()
        return {split: list(found) for split, found in DataFilesDict.from_patterns(get_data_patterns(base), base_path=base).items()}
    with tempfile.TemporaryDirectory(prefix="oneshui-names-") as scratch:  # the same names, as empty files
        for name in names:
            file = Path(scratch) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        base = Path(scratch).resolve().as_posix()
        found = DataFilesDict.from_patterns(get_data_patterns(base), base_path=base)
        return {split: [str(folder / os.path.relpath(file, base)) for file in files] for split, files in found.items()}


def _of_one_kind(files: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the files of the most common kind: a note in the folder must not change the fingerprint of a table."""
    from datasets.data_files import DataFilesDict, DataFilesList
    from datasets.load import infer_module_for_data_files

    def kind(names: list[str]) -> str | None:
        module: str | None = infer_module_for_data_files(DataFilesDict({"train": DataFilesList(names, [])}))[0]
        return module

    names = [file for found in files.values() for file in found]
    tables = [file for file in names if file.lower().endswith(PHOTO_TABLES)]  # a split or a preset next to them is no table
    try:
        chosen = kind(tables or names)
    except Exception:  # no file of a known kind, which `datasets` reports
        return files
    kept: dict[str, bool] = {}
    for file in names:
        suffixes = "".join(Path(file).suffixes)
        if suffixes not in kept:
            try:
                kept[suffixes] = kind([file]) == chosen
            except Exception:  # an unknown kind
                kept[suffixes] = False
    is_table = {file: kept["".join(Path(file).suffixes)] or Path(file).stem == "metadata" for file in names}
    return {split: own for split, found in files.items() if (own := [file for file in found if is_table[file]])}
