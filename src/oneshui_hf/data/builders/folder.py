"""Any local folder of photos with a `metadata.csv`: columns `file_name`, `identity`, and labels."""

from __future__ import annotations

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
BINARY = ({"0", "1"}, {"-1", "1"}, {"true", "false"})


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
        names = label_columns(frame, self.config.label_columns)
        if len(names) == 1 and _values(frame[names[0]]) not in BINARY:
            return Task("single_label", tuple(sorted(_values(frame[names[0]], fold=False), key=_numbers_first)))
        return Task("multi_label", names)

    @classmethod
    def fingerprint(cls, data_dir: Path | None) -> str:
        """Return a hash of the metadata and of the images' names and sizes."""
        folder = require_data_dir(str(data_dir) if data_dir else None, "folder", TREE)
        if not (folder / METADATA).is_file():
            raise OneshuiError(f"{folder} holds no {METADATA}. Expected:\n{TREE}")
        return hash_files([folder / METADATA], folder)

    def annotations(self) -> Annotations:
        """Read all rows whose image is there."""
        folder = Path(self.config.data_dir)
        frame = read_metadata(self.config.data_dir)
        present = [(folder / name).is_file() for name in frame["file_name"]]
        if not any(present):
            raise OneshuiError(f"None of the images that {folder / METADATA} names is there. Expected:\n{TREE}")
        missing = len(frame) - sum(present)
        frame = frame[present]
        task = self.task()
        if task.kind == "single_label":
            column = label_columns(frame, self.config.label_columns)[0]
            labels = np.array([task.label_names.index(value) for value in frame[column].str.strip()], dtype=np.int64)
        else:
            positive = frame[list(task.label_names)].apply(lambda column: column.str.strip().str.lower().isin(["1", "true"]))
            labels = positive.to_numpy().astype(np.int8)
        return Annotations(
            keys=frame["file_name"].tolist(),
            images=[str(folder / name) for name in frame["file_name"]],
            identities=frame["identity"].str.strip().tolist(),
            labels=labels,
            notes=(f"{missing} rows of {METADATA} without an image were left out.",) if missing else (),
        )


def read_metadata(data_dir: str | Path) -> pd.DataFrame:
    """Read `metadata.csv` as text.

    Raises:
        OneshuiError: It is missing, damaged, or lacks a column; the line is named where one is at fault.
    """
    import pandas as pd

    file = Path(data_dir) / METADATA
    if not file.is_file():
        raise OneshuiError(f"{data_dir} holds no {METADATA}. Expected:\n{TREE}")
    try:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise OneshuiError(f"{file} is not a readable CSV file: {str(error).strip()}.") from None
    for column in ("file_name", "identity"):
        if column not in frame:
            raise OneshuiError(f"{file} has no column '{column}'. Expected:\n{TREE}")
        if (frame[column] == "").any():
            line = int(np.flatnonzero(frame[column] == "")[0]) + 2
            raise OneshuiError(f"Line {line} of {file} has no {column}; fill it in or remove the line.")
    return frame


def label_columns(frame: pd.DataFrame, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Return the label columns: those asked for, else all binary ones, else the one called label, class or age.

    Raises:
        UsageError: One asked for does not exist, or is not binary beside others.
        OneshuiError: None was asked for and none can be told from the values.
    """
    others = [c for c in frame.columns if c not in ("file_name", "identity")]
    for name in wanted:
        if name not in others:
            raise UsageError(f"{METADATA} has no column '{name}'.{did_you_mean(name, others)}")
        if len(wanted) > 1 and not any(_values(frame[name]) <= pair for pair in BINARY):
            raise UsageError(f"Label column '{name}' holds {len(_values(frame[name]))} values; several labels must each be 0/1.")
    if wanted:
        return wanted
    binary = tuple(c for c in others if any(_values(frame[c]) <= pair for pair in BINARY))
    if binary:
        return binary
    classes = [c for c in others if c.lower() in ("label", "class", "age", "age_class")]
    if len(classes) == 1:
        return (classes[0],)
    raise OneshuiError(f"{METADATA} has no column of 0/1 and none called label; name the label columns with --label-columns.")


def _values(column: pd.Series, fold: bool = True) -> set[str]:
    stripped = column.str.strip()
    return set((stripped.str.lower() if fold else stripped).unique())


def _numbers_first(value: str) -> tuple[int, float, str]:
    return (0, float(value), "") if value.lstrip("-").isdigit() else (1, 0.0, value)
