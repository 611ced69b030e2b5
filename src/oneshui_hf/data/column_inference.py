"""Finds the columns of photos, identities and labels in a table: named by the user, or inferred from their names and values.

All columns are compared as text, so that the same rules apply to a CSV file and to a Parquet table of booleans.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import OneshuiError, UsageError, did_you_mean
from ..name_lists import match_names
from .missing_values import MISSING_LABELS
from .schema import Task

if TYPE_CHECKING:
    import pandas as pd

METADATA = "metadata.csv"  # the table of a folder of photos
IMAGE_COLUMNS = ("file_name", "image", "img", "photo", "picture", "face")
IDENTITY_COLUMNS = ("identity", "celeb_id", "identity_id", "subject", "subject_id", "person", "person_id", "people")
CLASS_COLUMNS = ("label", "labels", "class", "age", "age_class")
# Words of columns that assign a photo to a set ("is_train", "cv fold", "data_split") or that count ("n_faces"); these are not labels.
SPLIT_WORDS = frozenset(
    """train training trainval test testing val valid validation dev eval evaluation holdout split splits partition fold folds subset set
    sets trainset testset valset istrain istest isval isvalid intrain intest kfold gallery query probe enroll enrollment usage""".split()
)
SPLIT_FILLERS = frozenset("is in has for use used the of cv k data dataset flag id official random".split())
COUNT_FIRST = frozenset(("n", "num", "number", "count", "counts", "nb", "cnt", "nr", "total"))
COUNT_LAST = frozenset(("count", "counts", "cnt", "num", "no"))
COUNT_PHRASES = (["no", "of"], ["how", "many"])  # at the start; "no_beard" is a label
COUNT_ALONE = (["count"], ["index"], ["id"], ["total"], ["unnamed"])  # pandas calls a column without a name "Unnamed: 0"
COUNT_JOINED = re.compile(r"(n|nb|num)(faces?|people|persons?|photos?|images?)")
MAX_LISTED = 30  # column names in a message
KEY_COLUMN = "key"  # the photo's name, in a table written by `oneshui data push`
BINARY_VALUES = ({"0", "1"}, {"-1", "1"}, {"true", "false"}, {"0.0", "1.0"}, {"-1.0", "1.0"})
MAX_TYPO_SHARE = 0.05  # a column with a smaller share of other values is meant to be 0/1


@dataclass(frozen=True)
class Table:
    """A table of annotations.

    Attributes:
        name: Its name in messages.
        cells: All columns except the photos, as text; an empty cell is "".
        where: Returns the location of a row, for messages ("Line 3 of FILE").
    """

    name: str
    cells: pd.DataFrame
    where: Callable[[int], str]

    def require_no_empty_cells(self, columns: Sequence[str]) -> None:
        """Check that no cell of these columns is empty.

        Raises:
            OneshuiError: A cell is empty; the message names its row.
        """
        for column in columns:
            empty = np.flatnonzero(self.cells[column].str.strip() == "")
            if empty.size:
                raise OneshuiError(f"{self.where(empty[0])} has no {column}; fill it in or remove the line.")

    def take(self, rows: np.ndarray) -> Table:
        """Return the table with these rows only. Messages name the same places."""
        return Table(self.name, self.cells.iloc[rows].reset_index(drop=True), lambda row: self.where(int(rows[row])))

    def distinct_values(self, column: str) -> set[str]:
        """Return the distinct values of a column, in lower case, without empty cells."""
        return set(self.cells[column].str.strip().str.lower().unique()) - {""}

    def is_binary(self, column: str) -> bool:
        """Return whether all values of a column are from one pair that means no and yes."""
        return any(self.distinct_values(column) <= pair for pair in BINARY_VALUES)


@dataclass(frozen=True)
class Labels:
    """The labels in the chosen columns.

    Attributes:
        task: The prediction task.
        values: int8 (N, K) of 0/1, or int64 (N,).
        notes: Sentences that state what was inferred.
    """

    task: Task
    values: np.ndarray
    notes: list[str]


def resolve_column(names: Sequence[str], requested: str | None, common: Sequence[str], option: str, content: str, table: str) -> str:
    """Return the requested column, or the first column with a common name.

    Args:
        names: All columns.
        requested: Value of the option; inferred if None.
        common: Common names of such a column.
        option: The option that names the column, for messages.
        content: The content of the column, for messages.
        table: Name of the table, for messages.

    Raises:
        UsageError: The requested column does not exist.
        OneshuiError: No column is requested and none has a common name.
    """
    if requested is not None:
        if requested not in names:
            raise UsageError(f"{table} has no column '{requested}'.{did_you_mean(requested, names)}")
        return requested
    folded = {name.strip().lower(): name for name in reversed(names)} | {name: name for name in names}  # an exact name comes first
    found = next((folded[name] for name in common if name in folded), None)
    if found is None:
        raise OneshuiError(f"{table} has no column '{common[0]}'; name the column of {content} with {option}: {_listed(names)}.")
    return found


def _listed(names: Sequence[str]) -> str:
    """Return column names for a message; a table may have thousands."""
    rest = [f"and {len(names) - MAX_LISTED:,} more"] * (len(names) > MAX_LISTED)
    return ", ".join([*names[:MAX_LISTED], *rest])


def counts_or_splits(column: str) -> bool:
    """Return whether a column has the name of a count ("n_faces") or of an assignment to sets ("is_train")."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", column)]
    if len(words) > 1 and (words[0] in COUNT_FIRST or words[-1] in COUNT_LAST):
        return True
    if "#" in column or words[:2] in COUNT_PHRASES:
        return True
    named = [word for word in words if not word.isdigit() and word not in SPLIT_FILLERS]
    return (
        [word for word in words if not word.isdigit()] in COUNT_ALONE
        or COUNT_JOINED.fullmatch(column.lower()) is not None
        or (bool(named) and SPLIT_WORDS.issuperset(named))
    )


def read_labels(table: Table, candidates: Sequence[str], requested: Sequence[str]) -> Labels:
    """Read the label columns: the requested ones, otherwise all binary ones, otherwise `label`, `class` or `age`.

    Columns that name a set or a count are labels only if they are requested.

    Args:
        table: The table.
        candidates: Its columns that may be labels.
        requested: The requested columns; inferred if empty.

    Raises:
        UsageError: A requested column does not exist, is requested twice, or is one of several and not binary.
        OneshuiError: No column is requested and none can be inferred, or a cell is empty.
    """
    table = _without_missing(table, candidates)
    columns = choose_label_columns(table, candidates, requested)
    unused = [name for name in candidates if name not in columns]
    if not requested:
        _check_typos(table, [name for name in unused if not counts_or_splits(name)])
    table.require_no_empty_cells(columns)
    notes = []
    if unused and not requested:
        what = f"{len(columns)} columns are labels" if len(columns) > 1 else f"The label is column '{columns[0]}'"
        notes.append(f"{what}; {_listed(unused)} {'are' if len(unused) > 1 else 'is'} not (choose with --label-columns).")
    if len(columns) > 1 or table.is_binary(columns[0]):
        positive = [table.cells[name].str.strip().str.lower().isin(["1", "1.0", "true"]) for name in columns]
        return Labels(Task("multi_label", columns), np.stack(positive, axis=1).astype(np.int8), notes)
    cells = table.cells[columns[0]].str.strip()
    if cells.nunique() == 1:
        raise OneshuiError(f"Label column '{columns[0]}' of {table.name} has one distinct value, so there is nothing to predict.")
    classes = sorted(cells.unique(), key=_numbers_first)
    number = {value: index for index, value in enumerate(classes)}
    return Labels(Task("single_label", tuple(classes)), cells.map(number).to_numpy(dtype=np.int64), notes)


def _without_missing(table: Table, candidates: Sequence[str]) -> Table:
    """Return the table with empty cells instead of words that tools write for a missing value, such as nan."""
    cells = table.cells.copy(deep=False)
    for name in candidates:
        if words := [value for value in cells[name].unique() if value.strip().casefold() in MISSING_LABELS]:
            cells[name] = cells[name].where(~cells[name].isin(words), "")
    return replace(table, cells=cells)


def choose_label_columns(table: Table, candidates: Sequence[str], requested: Sequence[str]) -> tuple[str, ...]:
    """Return the label columns; see `read_labels`."""
    requested = match_names(requested, list(table.cells))  # a column's name may contain a comma
    for name in requested:
        if name in table.cells and name not in candidates:
            raise UsageError(f"Column '{name}' of {table.name} names photos or people and is not a label; remove it from --label-columns.")
        if name not in candidates:
            raise UsageError(f"{table.name} has no column '{name}'.{did_you_mean(name, candidates)}")
        if requested.count(name) > 1:
            raise UsageError(f"--label-columns names '{name}' {requested.count(name)} times; name each column once.")
        if len(requested) > 1 and not table.is_binary(name):
            raise UsageError(f"Label column '{name}' has {len(table.distinct_values(name))} values; several labels must each be 0/1.")
    if requested:
        return tuple(requested)
    binary = tuple(name for name in candidates if not counts_or_splits(name) and table.distinct_values(name) and table.is_binary(name))
    if binary:
        return binary
    classes = [name for name in candidates if name.lower() in CLASS_COLUMNS]
    if len(classes) == 1:
        return (classes[0],)
    skipped = [name for name in candidates if counts_or_splits(name) and table.distinct_values(name) and table.is_binary(name)]
    except_for = f", except for {_listed(skipped)}" if skipped else ""
    raise OneshuiError(f"{table.name} has no column of 0/1{except_for} and none called label; name the label columns with --label-columns.")


def _check_typos(table: Table, names: Sequence[str]) -> None:
    """Check that no column is 0/1 except for a few cells: a typo must not silently remove a label.

    Raises:
        OneshuiError: A column has a few other values; the message names the first.
    """
    for name in names:
        cells = table.cells[name].str.strip().str.lower()
        for pair in BINARY_VALUES:
            other = np.flatnonzero(~cells.isin([*pair, ""]))
            if 0 < len(other) < MAX_TYPO_SHARE * (cells != "").sum():
                value = table.cells[name].iloc[other[0]]
                raise OneshuiError(
                    f"{table.where(other[0])} has '{value}' as {name}, which is {' or '.join(sorted(pair))} elsewhere; "
                    "repair it, or name the label columns with --label-columns."
                )


def _numbers_first(value: str) -> tuple[int, float, str]:
    return (0, float(value), "") if re.fullmatch(r"-?[0-9]+", value) else (1, 0.0, value)
