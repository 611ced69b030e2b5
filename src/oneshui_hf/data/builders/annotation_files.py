"""Annotation files as people have them: tables of photo names and whole numbers, and tables of words.

Numbers come with or without a header, a line with the number of rows, a byte-order mark, padding; LF or CRLF; separated by spaces or by
commas. They are read in one go by Arrow; only where that fails is the file looked through line by line, to say which line is at fault.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
from pyarrow import csv as arrow_csv

from ...errors import OneshuiError
from ..column_inference import Table
from ..images import LFS_POINTER

WHOLE_NUMBER = re.compile(r"-?[0-9]{1,9}")  # what an int32 holds for certain
WEB_PAGE = re.compile(rb"\s*<(!doctype|html|head|body|\?xml)", re.IGNORECASE)


def read_table(file: Path, columns: Sequence[str], *, named: bool = False) -> pd.DataFrame:
    """Read one row a photo: its name is the index, the rest whole numbers.

    Args:
        file: The annotation file.
        columns: Names of the columns after the photo's.
        named: The file's header must name these columns, in any order; otherwise a header may be absent and its words do not matter.

    Raises:
        OneshuiError: The file is missing, is a web page or an LFS pointer, names other columns, has a line with the wrong number of
            columns or another value than a whole number (the line is named), or names a photo twice.
    """
    lines = _Lines.read(file)
    order = list(columns)
    if named:
        order = lines.header[-len(columns) :]
        if sorted(order) != sorted(columns):
            raise OneshuiError(f"Line {lines.first} of {file} does not name the {len(columns)} attributes; is it the right file?")
    photo = "\0photo"
    try:
        table = arrow_csv.read_csv(
            pa.py_buffer(lines.body),
            read_options=arrow_csv.ReadOptions(column_names=[photo, *order]),
            parse_options=arrow_csv.ParseOptions(delimiter=lines.separator, quote_char='"' if lines.separator == "," else False),
            convert_options=arrow_csv.ConvertOptions(column_types={photo: pa.string()} | dict.fromkeys(order, pa.int32())),
        )
    except pa.ArrowInvalid as error:
        raise lines.fault(len(columns) + 1) or OneshuiError(f"{file} cannot be read ({error}); repair it.") from None
    names = pd.Index([name.strip() for name in table.column(photo).to_pylist()], dtype=object)  # looked up faster than Arrow text
    if names.has_duplicates:
        number, name = lines.second_mention()
        raise OneshuiError(f"Line {number} of {file} names {name} a second time; remove one of its lines.")
    if table.num_rows and any(column.null_count for column in table.columns):
        raise lines.fault(len(columns) + 1) or OneshuiError(f"{file} has empty cells; fill them in.")
    return table.select(list(columns)).to_pandas().set_index(names)


class _Lines:
    """The lines of an annotation file: which is the header, where the rows begin, what separates the cells."""

    def __init__(self, file: Path, text: bytes) -> None:
        self.file, self.text = file, text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        head = self.text[:10_000].decode(errors="replace").split("\n")
        filled = [number for number, line in enumerate(head) if line.strip()]
        if filled and head[filled[0]].strip().isdigit():  # the number of rows
            del filled[0]
        start = filled[0] if filled else len(head)
        self.separator = "," if any("," in head[number] for number in filled[:2]) else " "
        first = self.cells(head[start]) if filled else []
        # A first line with a photo's name in it is a row, whatever else is wrong with it: taken for a header, it would vanish.
        headed = bool(first) and "." not in first[0] and not any(map(WHOLE_NUMBER.fullmatch, first))
        self.header = first if headed else []
        self.first = start + 1  # the line of the header
        self.start = start + headed  # how many lines come before the rows

    @classmethod
    def read(cls, file: Path) -> _Lines:
        try:
            text = file.read_bytes()
        except FileNotFoundError:
            raise OneshuiError(f"There is no annotation file {file}.") from None
        text = text.removeprefix(b"\xef\xbb\xbf")
        refuse_substitutes(file, text[:1000])
        try:
            text.decode()
        except UnicodeDecodeError:
            raise OneshuiError(f"{file} is not a text file.") from None
        if not text.strip():
            raise OneshuiError(f"{file} is empty.")
        return cls(file, text)

    @property
    def body(self) -> bytes:
        """The rows, one space between cells and none at the ends: Arrow takes one separator, not a run of them."""
        body = self.text.split(b"\n", self.start)[-1] if self.start else self.text  # Arrow leaves empty lines out
        if self.separator == " ":
            body = body.replace(b"\t", b" ")
            while b"  " in body:
                body = body.replace(b"  ", b" ")
            body = body.replace(b" \n", b"\n").replace(b"\n ", b"\n").strip(b" ")
        return body

    def cells(self, line: str) -> list[str]:
        return [cell.strip().strip('"') for cell in line.split(",")] if self.separator == "," else line.split()

    def rows(self) -> list[tuple[int, list[str]]]:
        """Return (line, cells) of every row."""
        lines = enumerate(self.text.decode().split("\n")[self.start :], self.start + 1)
        return [(number, self.cells(line)) for number, line in lines if line.strip()]

    def fault(self, columns: int) -> OneshuiError | None:
        """Return what to tell of the first row that is at fault."""
        for number, cells in self.rows():
            if len(cells) != columns:
                return OneshuiError(
                    f"Line {number} of {self.file} has {len(cells)} columns where {columns} are expected; repair or remove it."
                )
            for cell in cells[1:]:
                if not WHOLE_NUMBER.fullmatch(cell):
                    return OneshuiError(
                        f"Line {number} of {self.file} holds '{cell}' where a whole number of up to 9 digits is expected; "
                        "repair or remove it."
                    )
        return None

    def second_mention(self) -> tuple[int, str]:
        seen: set[str] = set()
        for number, (name, *_) in self.rows():
            if name in seen:
                return number, name
            seen.add(name)
        raise AssertionError("every photo is named once")

    def line_of(self, row: int) -> int:
        """Return the line on which a row of the table stands."""
        return self.rows()[row][0]


def line_of(file: Path, row: int) -> int:
    """Return the line of the file on which a row of its table stands, for messages."""
    return _Lines.read(file).line_of(row)


def read_words(file: Path) -> Table:
    """Read a CSV file with a header as text; an empty cell is "", and rows of empty cells are left out.

    Raises:
        OneshuiError: It is missing or damaged; the line is named where one is at fault.
    """
    try:
        with file.open("rb") as opened:
            refuse_substitutes(file, opened.read(1000))
        with file.open(encoding="utf-8-sig", newline="") as text:
            _check_header(file, next(csv.reader(text), []))
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # the first row is longer than the header
            frame = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False).fillna("")
    except FileNotFoundError:
        raise OneshuiError(f"There is no annotation file {file}.") from None
    except pd.errors.ParserWarning:
        raise OneshuiError(f"{file} is not a readable CSV file: its first row has more columns than its header.") from None
    except (csv.Error, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise OneshuiError(f"{file} is not a readable CSV file: {str(error).strip()}.") from None
    filled = frame.apply(lambda column: column.str.strip() != "").any(axis=1)
    return Table(file.name, frame[filled].reset_index(drop=True), lambda row: f"Line {_line(file, row)} of {file}")


def _check_header(file: Path, names: list[str]) -> None:
    """Refuse a header that would be misread.

    Raises:
        OneshuiError: It names a column twice, or is separated by something else than commas.
    """
    if twice := next((name for name in names if names.count(name) > 1 and name), None):
        raise OneshuiError(f"{file} has two columns called '{twice}'; rename one of them.")
    if len(names) == 1 and (other := next((mark for mark in ";\t|" if mark in names[0]), None)):
        raise OneshuiError(f"{file} is separated by {'tabs' if other == chr(9) else other}, not by commas; save it with commas.")


def _line(file: Path, row: int) -> int:
    """Return the line on which a row of words ends: rows of empty cells do not count, and a cell in quotes may span several lines."""
    with file.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text)
        lines = [reader.line_num for cells in reader if any(cell.strip() for cell in cells)]
    return lines[row + 1]  # the first is the header


def refuse_substitutes(file: Path, start: bytes) -> None:
    """Refuse what downloads leave in place of a file.

    Raises:
        OneshuiError: It is a web page, or a Git LFS pointer.
    """
    if WEB_PAGE.match(start):
        raise OneshuiError(
            f"{file} is a web page, not the annotation file: the download was refused, often for a used-up quota. Download it again."
        )
    if start.startswith(LFS_POINTER):
        raise OneshuiError(f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository.")
