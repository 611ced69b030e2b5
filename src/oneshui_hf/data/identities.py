"""Reads the identity column of a table: cells without an identity, and numbers that are written in two ways.

A cell without an identity must not become a person: its photos would be unrelated. Two ways to write a number must not become two people:
a column with an empty cell is often stored as floating point, so that 12 becomes 12.0.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np

from ..errors import OneshuiError
from .missing_values import MISSING

if TYPE_CHECKING:
    from .column_inference import Table

# Words that are read as a person, with a note.
PLACEHOLDERS = frozenset(
    """-1 ? ?? - -- --- . ~ unknown unk missing undefined undef nil nat inf -inf n.a. n.a (null) (none) anonymous tbd""".split()
)
MAX_NAMED = 5  # photos and texts that a note names
MAX_EXACT = 2**53 - 1  # above, a float64 may stand for several whole numbers
FLOAT_BITS = {"float16": 11, "float32": 24, "float64": 53}

_WHOLE = re.compile(r"[+-]?[0-9]+")
_WHOLE_FLOAT = re.compile(r"([+-]?[0-9]+)\.0*")
# With a sign or a point: "1e16" may be a hexadecimal name.
_EXPONENT = re.compile(r"[+-]?[0-9]+(\.[0-9]+[eE][+-]?|[eE][+-])[0-9]+")


@dataclass(frozen=True)
class Identities:
    """The identities of a table's rows.

    Attributes:
        names: The identity of each row, N; "" if it has none.
        present: Whether each row has an identity, bool (N,).
        notes: Sentences about what is left out or unified.
    """

    names: list[str]
    present: np.ndarray
    notes: list[str]

    @property
    def kept(self) -> np.ndarray:
        """The rows with an identity, int64."""
        return np.flatnonzero(self.present)


def read_identities(table: Table, column: str, keys: Sequence[str]) -> Identities:
    """Read the identity column.

    Args:
        table: The table.
        column: Its identity column.
        keys: The photo names of its rows, for notes.

    Raises:
        OneshuiError: Two texts name one person in a column that also has other names, or a number is stored with less precision than it
            needs; the message names the rows.
    """
    cells = table.cells[column].str.strip()
    present = (~cells.str.casefold().isin(MISSING)).to_numpy(dtype=bool)
    texts = cells[present].unique().tolist()
    names = _unified_names(texts, table, column)
    notes = []
    if not present.all():
        notes.append(_missing_note(cells.to_numpy(dtype=object)[~present], [keys[row] for row in np.flatnonzero(~present).tolist()]))
    spellings: dict[str, list[str]] = {}
    for text in texts:
        spellings.setdefault(names[text], []).append(text)
    if double := [found for found in spellings.values() if len(found) > 1]:
        what = "1 identity is written in two ways" if len(double) == 1 else f"{len(double):,} identities are written in two ways"
        notes.append(f"{what}, such as '{double[0][0]}' and '{double[0][1]}'; each is read as one person.")
    for name in spellings:
        if name.casefold() in PLACEHOLDERS:
            what = f"'{name}' is read as a person"
            notes.append(f"{what}; leave the cells of column '{column}' empty if it means that the identity is unknown.")
    notes += _similar_names_note(spellings)
    return Identities([names.get(text, "") if here else "" for text, here in zip(cells, present, strict=True)], present, notes)


def folded_name(name: str) -> str:
    """Return a name without what people overlook: case, repeated spaces, invisible characters, leading zeros of a number."""
    visible = "".join(sign for sign in unicodedata.normalize("NFKC", name) if unicodedata.category(sign) != "Cf")
    words = " ".join(visible.casefold().split())
    return words.lstrip("0") or "0" if words.isdecimal() else words


def _similar_names_note(names: Iterable[str]) -> list[str]:
    """Return a note on names that may be one person's, if there are any."""
    similar: dict[str, list[str]] = {}
    for name in names:
        similar.setdefault(folded_name(name), []).append(name)
    if not (found := [group for group in similar.values() if len(group) > 1]):
        return []
    more = f" ({len(found):,} such cases)" if len(found) > 1 else ""
    what = f"'{found[0][0]}' and '{found[0][1]}' differ only in upper and lower case, spaces or leading zeros{more}"
    return [f"{what} and are read as different people; if they are one person, write the name in one way."]


def _missing_note(cells: Sequence[str], keys: Sequence[str]) -> str:
    words = sorted({f"'{cell}'" if cell else "an empty cell" for cell in cells})
    rest = [f"and {len(keys) - MAX_NAMED:,} more"] * (len(keys) > MAX_NAMED)
    what, verb = ("1 row has", "is") if len(keys) == 1 else (f"{len(keys):,} rows have", "are")
    note = f"{what} no identity ({', '.join(words)}) and {verb} left out: {', '.join([*keys[:MAX_NAMED], *rest])}."
    if words != ["an empty cell"]:
        note += " If a person is called so, write another name in the table."
    return note


def _unified_names(texts: Sequence[str], table: Table, column: str) -> dict[str, str]:
    """Return the name of the person for each text of the identity column.

    Only in a column of whole numbers, 12.0 is 12: among other names, 1.0 may be a version or a section. There, two spellings of a number
    are an error.
    """
    numbers = {text: number for text in texts if (number := _whole_number(text)) is not None}
    for text in numbers:
        if not _WHOLE.fullmatch(text) and not -MAX_EXACT <= Decimal(text) <= MAX_EXACT:
            raise OneshuiError(
                f"{_where(table, column, text)} has the identity '{text}', a number that was rounded when it was stored as floating point; "
                "write identities as text or as whole numbers."
            )
    if len(numbers) == len(texts):
        return numbers
    first: dict[str, str] = {}
    for text in texts:
        other = first.setdefault(numbers.get(text) or unicodedata.normalize("NFC", text), text)
        if other != text:
            how = "" if text in numbers else ", which differ only in their Unicode form"
            raise OneshuiError(
                f"{_where(table, column, text)} has the identity '{text}', and {_where(table, column, other)} has '{other}'{how}; "
                "write a person's name in one way."
            )
    return {text: text for text in texts}


def _whole_number(text: str) -> str | None:
    """Return a whole number in its usual form, with its leading zeros, or None if the text is not a whole number."""
    if _WHOLE.fullmatch(text):
        number = text
    elif found := _WHOLE_FLOAT.fullmatch(text):
        number = found[1]
    elif _EXPONENT.fullmatch(text):
        value = Decimal(text)
        if value.adjusted() < 0 or value.adjusted() > 30 or value != value.to_integral_value():
            return text if value.adjusted() > 30 else None
        number = str(int(value))
    else:
        return None
    number = number.removeprefix("+")
    return number[1:] if number.startswith("-") and not number.strip("-0") else number


def _where(table: Table, column: str, text: str) -> str:
    rows = np.flatnonzero((table.cells[column].str.strip() == text).to_numpy())
    return table.where(int(rows[0]))
