"""Which columns of somebody's table are the photo, the person and the labels: named by the user, or told by their names and values.

Works on a frame of text, so that a CSV file and a Parquet table of booleans go by the same rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import OneshuiError, UsageError, did_you_mean
from .schema import Task

if TYPE_CHECKING:
    import pandas as pd

METADATA = "metadata.csv"  # the table of a folder of photos
IMAGES = ("file_name", "image", "img", "photo", "picture", "face")
PEOPLE = ("identity", "celeb_id", "identity_id", "subject", "subject_id", "person", "person_id", "people")
CLASSES = ("label", "labels", "class", "age", "age_class")
SETS = ("partition", "split", "fold", "set")  # columns that say where a photo belongs, not what it shows
KEY = "key"  # the photo's name, in a table that `oneshui data push` wrote
BINARY = ({"0", "1"}, {"-1", "1"}, {"true", "false"}, {"0.0", "1.0"}, {"-1.0", "1.0"})
SLIPS = 0.05  # a column with fewer odd cells than this share is meant to be 0/1


@dataclass(frozen=True)
class Table:
    """Somebody's table.

    Attributes:
        name: What to call it in messages.
        cells: All columns but the photos themselves, as text; an empty cell is "".
        where: Tells where a row stands, for messages ("Line 3 of FILE").
    """

    name: str
    cells: pd.DataFrame
    where: Callable[[int], str]

    def require_filled(self, columns: Sequence[str]) -> None:
        """Refuse an empty cell.

        Raises:
            OneshuiError: There is one; its row is named.
        """
        for column in columns:
            empty = np.flatnonzero(self.cells[column].str.strip() == "")
            if empty.size:
                raise OneshuiError(f"{self.where(empty[0])} has no {column}; fill it in or remove the line.")

    def values(self, column: str, fold: bool = True) -> set[str]:
        """Return the values of a column, without empty cells."""
        stripped = self.cells[column].str.strip()
        return set((stripped.str.lower() if fold else stripped).unique()) - {""}

    def is_binary(self, column: str) -> bool:
        """Whether a column holds two values that mean no and yes, or one of them."""
        return any(self.values(column) <= pair for pair in BINARY)


@dataclass(frozen=True)
class Labels:
    """What the chosen columns say.

    Attributes:
        task: What is predicted.
        values: int8 (N, K) of 0/1, or int64 (N,).
        notes: What was guessed, in sentences.
    """

    task: Task
    values: np.ndarray
    notes: list[str]


def one_column(names: Sequence[str], wanted: str | None, usual: Sequence[str], option: str, what: str, table: str) -> str:
    """Return the column that was asked for, or the first that is called as usual.

    Raises:
        UsageError: The one asked for is not there.
        OneshuiError: None was asked for and none is called as usual.
    """
    if wanted is not None:
        if wanted not in names:
            raise UsageError(f"{table} has no column '{wanted}'.{did_you_mean(wanted, names)}")
        return wanted
    folded = {name.lower(): name for name in names}
    found = next((folded[name] for name in usual if name in folded), None)
    if found is None:
        raise OneshuiError(f"{table} has no column '{usual[0]}'; name the column of {what} with {option}: {', '.join(names)}.")
    return found


def read_labels(table: Table, candidates: Sequence[str], wanted: Sequence[str]) -> Labels:
    """Read the label columns: those asked for, else all binary ones that name no set, else the one called label, class or age.

    Args:
        table: The table.
        candidates: Its columns that may be labels.
        wanted: Those asked for; guessed where empty.

    Raises:
        UsageError: One asked for does not exist, is asked for twice, or is not binary beside others.
        OneshuiError: None was asked for and none can be told from the values, or a cell is empty.
    """
    columns = choose_labels(table, candidates, wanted)
    unused = [name for name in candidates if name not in columns]
    if not wanted:
        _refuse_slips(table, [name for name in unused if name.lower() not in SETS])
    table.require_filled(columns)
    notes = []
    if unused and not wanted:
        what = f"{len(columns)} columns are labels" if len(columns) > 1 else f"The label is column '{columns[0]}'"
        notes.append(f"{what}; {', '.join(unused)} {'are' if len(unused) > 1 else 'is'} not (choose with --label-columns).")
    if len(columns) > 1 or table.is_binary(columns[0]):
        positive = [table.cells[name].str.strip().str.lower().isin(["1", "1.0", "true"]) for name in columns]
        return Labels(Task("multi_label", columns), np.stack(positive, axis=1).astype(np.int8), notes)
    cells = table.cells[columns[0]].str.strip()
    if cells.nunique() == 1:
        raise OneshuiError(f"Label column '{columns[0]}' of {table.name} holds one value, so there is nothing to tell apart.")
    classes = sorted(cells.unique(), key=_numbers_first)
    number = {value: place for place, value in enumerate(classes)}
    return Labels(Task("single_label", tuple(classes)), cells.map(number).to_numpy(dtype=np.int64), notes)


def choose_labels(table: Table, candidates: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the label columns; see `read_labels`."""
    for name in wanted:
        if name in table.cells and name not in candidates:
            raise UsageError(f"Column '{name}' of {table.name} names photos or people, so it is no label; leave it out of --label-columns.")
        if name not in candidates:
            raise UsageError(f"{table.name} has no column '{name}'.{did_you_mean(name, candidates)}")
        if wanted.count(name) > 1:
            raise UsageError(f"--label-columns names '{name}' {wanted.count(name)} times; name each column once.")
        if len(wanted) > 1 and not table.is_binary(name):
            raise UsageError(f"Label column '{name}' holds {len(table.values(name))} values; several labels must each be 0/1.")
    if wanted:
        return tuple(wanted)
    binary = tuple(name for name in candidates if name.lower() not in SETS and table.values(name) and table.is_binary(name))
    if binary:
        return binary
    classes = [name for name in candidates if name.lower() in CLASSES]
    if len(classes) == 1:
        return (classes[0],)
    raise OneshuiError(f"{table.name} has no column of 0/1 and none called label; name the label columns with --label-columns.")


def _refuse_slips(table: Table, names: Sequence[str]) -> None:
    """Refuse a column that is 0/1 but for a few cells: a slip of the hand must not cost a label without a word."""
    for name in names:
        cells = table.cells[name].str.strip().str.lower()
        for pair in BINARY:
            odd = np.flatnonzero(~cells.isin([*pair, ""]))
            if 0 < len(odd) < SLIPS * (cells != "").sum():
                value = table.cells[name].iloc[odd[0]]
                raise OneshuiError(
                    f"{table.where(odd[0])} has '{value}' as {name}, which is {' or '.join(sorted(pair))} elsewhere; "
                    "repair it, or name the label columns with --label-columns."
                )


def _numbers_first(value: str) -> tuple[int, float, str]:
    return (0, float(value), "") if re.fullmatch(r"-?[0-9]+", value) else (1, 0.0, value)
