"""Any local folder of photos with a `metadata.csv`: columns `file_name`, `identity`, and labels."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np

from ...errors import OneshuiError, UsageError, did_you_mean
from ..schema import Task
from .base import Annotations, FaceBuilder, hash_files, require_data_dir

if TYPE_CHECKING:
    import pandas as pd

TREE = """\
  DIR/metadata.csv     columns file_name, identity, and one 0/1 column an attribute (or one column of classes)
  DIR/...              the photos, where file_name says"""

METADATA = "metadata.csv"
SLIPS = 0.05  # a column with fewer odd cells than this share is meant to be 0/1
BINARY = ({"0", "1"}, {"-1", "1"}, {"true", "false"})
SETS = ("partition", "split", "fold", "set")  # columns that say where a photo belongs, not what it shows


@dataclass
class FolderConfig(datasets.BuilderConfig):  # type: ignore[misc]
    """Which columns are labels; guessed where empty."""

    label_columns: tuple[str, ...] = ()


class Folder(FaceBuilder):
    """A folder with `metadata.csv`."""

    BUILDER_CONFIG_CLASS = FolderConfig
    summary = "your own folder with metadata.csv (file_name, identity, label columns)"
    needs = "a path as --dataset"

    def task(self) -> Task:
        """Return the attributes, or the classes where the one label column holds more than two values."""
        frame = read_metadata(self.config.data_dir)
        return _task(frame, label_columns(frame, self.config.label_columns))

    @classmethod
    def fingerprint(cls, data_dir: Path | None) -> str:
        """Return a hash of the metadata and of the images' names, sizes and times of change."""
        folder = require_data_dir(str(data_dir) if data_dir else None, "folder", TREE)
        if not (folder / METADATA).is_file():
            raise OneshuiError(f"{folder} holds no {METADATA}. Expected:\n{TREE}")
        return hash_files([folder / METADATA], folder)

    def annotations(self) -> Annotations:
        """Read all rows whose image is there."""
        folder = Path(self.config.data_dir)
        frame = read_metadata(folder)
        columns = label_columns(frame, self.config.label_columns)
        if not self.config.label_columns:
            unused = [c for c in frame.columns if c not in ("file_name", "identity", *columns) and c.lower() not in SETS]
            _refuse_slips(frame, unused, folder / METADATA)
        _require_filled(frame, columns, folder / METADATA)
        task = _task(frame, columns)  # from all rows: labels do not depend on which photos are there
        present = [(folder / name).is_file() for name in frame["file_name"]]
        if not any(present):
            raise OneshuiError(f"None of the images that {folder / METADATA} names is there. Expected:\n{TREE}")
        notes = [] if self.config.label_columns else _notes_of_guess(frame, columns)
        if missing := len(frame) - sum(present):
            notes.append(f"{missing} rows of {METADATA} without an image were left out.")
        frame = frame[present]
        if task.kind == "single_label":
            labels = np.array([task.label_names.index(value) for value in frame[columns[0]].str.strip()], dtype=np.int64)
        else:
            positive = frame[list(columns)].apply(lambda column: column.str.strip().str.lower().isin(["1", "true"]))
            labels = positive.to_numpy().astype(np.int8)
        return Annotations(
            keys=frame["file_name"].tolist(),
            images=[str(folder / name) for name in frame["file_name"]],
            identities=frame["identity"].str.strip().tolist(),
            labels=labels,
            notes=tuple(notes),
        )


def read_metadata(data_dir: str | Path) -> pd.DataFrame:
    """Read `metadata.csv` as text; an empty cell is "".

    Raises:
        OneshuiError: It is missing, damaged, lacks a column, or names a photo twice; the line is named where one is at fault.
    """
    import pandas as pd

    file = Path(data_dir) / METADATA
    if not file.is_file():
        raise OneshuiError(f"{data_dir} holds no {METADATA}. Expected:\n{TREE}")
    try:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False).fillna("")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise OneshuiError(f"{file} is not a readable CSV file: {str(error).strip()}.") from None
    for column in ("file_name", "identity"):
        if column not in frame:
            raise OneshuiError(f"{file} has no column '{column}'. Expected:\n{TREE}")
    _require_filled(frame, ("file_name", "identity"), file)
    twice = np.flatnonzero(frame["file_name"].duplicated())
    if twice.size:
        name = frame["file_name"][twice[0]]
        raise OneshuiError(f"Line {_line(file, twice[0])} of {file} names {name} a second time; remove one of its lines.")
    return frame


def _require_filled(frame: pd.DataFrame, columns: tuple[str, ...], file: Path) -> None:
    for column in columns:
        empty = np.flatnonzero(frame[column].str.strip() == "")
        if empty.size:
            raise OneshuiError(f"Line {_line(file, empty[0])} of {file} has no {column}; fill it in or remove the line.")


def _line(file: Path, row: int) -> int:
    """Return the line on which a row of the frame ends: pandas skips blank lines, and a cell in quotes may span several."""
    with file.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text)
        lines = [reader.line_num for cells in reader if ",".join(cells).strip()]
    return lines[row + 1]  # the first is the header


def label_columns(frame: pd.DataFrame, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Return the label columns: those asked for, else all binary ones that name no set, else the one called label, class or age.

    Raises:
        UsageError: One asked for does not exist, is asked for twice, or is not binary beside others.
        OneshuiError: None was asked for and none can be told from the values.
    """
    others = [c for c in frame.columns if c not in ("file_name", "identity")]
    for name in wanted:
        if name not in others:
            raise UsageError(f"{METADATA} has no column '{name}'.{did_you_mean(name, others)}")
        if wanted.count(name) > 1:
            raise UsageError(f"--label-columns names '{name}' {wanted.count(name)} times; name each column once.")
        if len(wanted) > 1 and not _is_binary(frame[name]):
            raise UsageError(f"Label column '{name}' holds {len(_values(frame[name]))} values; several labels must each be 0/1.")
    if wanted:
        return wanted
    binary = tuple(c for c in others if c.lower() not in SETS and _values(frame[c]) and _is_binary(frame[c]))
    if binary:
        return binary
    classes = [c for c in others if c.lower() in ("label", "class", "age", "age_class")]
    if len(classes) == 1:
        return (classes[0],)
    raise OneshuiError(f"{METADATA} has no column of 0/1 and none called label; name the label columns with --label-columns.")


def _task(frame: pd.DataFrame, columns: tuple[str, ...]) -> Task:
    if len(columns) > 1 or _is_binary(frame[columns[0]]):
        return Task("multi_label", columns)
    return Task("single_label", tuple(sorted(_values(frame[columns[0]], fold=False), key=_numbers_first)))


def _notes_of_guess(frame: pd.DataFrame, columns: tuple[str, ...]) -> list[str]:
    unused = [c for c in frame.columns if c not in ("file_name", "identity", *columns)]
    return [f"{len(columns)} columns are labels; {', '.join(unused)} were left out."] if unused else []


def _refuse_slips(frame: pd.DataFrame, names: list[str], file: Path) -> None:
    """Refuse a column that is 0/1 but for a few cells: a slip of the hand must not cost a label without a word."""
    for name in names:
        cells = frame[name].str.strip().str.lower()
        for pair in BINARY:
            odd = np.flatnonzero(~cells.isin([*pair, ""]))
            if 0 < len(odd) < SLIPS * len(cells):
                value = frame[name].iloc[odd[0]]
                raise OneshuiError(
                    f"Line {_line(file, odd[0])} of {file} has '{value}' as {name}, which is {' or '.join(sorted(pair))} elsewhere; "
                    "repair it, or name the label columns with --label-columns."
                )


def _is_binary(column: pd.Series) -> bool:
    return any(_values(column) <= pair for pair in BINARY)


def _values(column: pd.Series, fold: bool = True) -> set[str]:
    """Return the values of a column, without empty cells."""
    stripped = column.str.strip()
    return set((stripped.str.lower() if fold else stripped).unique()) - {""}


def _numbers_first(value: str) -> tuple[int, float, str]:
    return (0, float(value), "") if re.fullmatch(r"-?[0-9]+", value) else (1, 0.0, value)
