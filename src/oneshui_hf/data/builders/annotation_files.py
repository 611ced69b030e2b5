"""Readers of annotation files: tables of photo names and integers, and tables of text.

Tables of integers may have a header, a line with the number of rows, a byte-order mark and padding, LF or CRLF line ends, and spaces or
commas as separators. Arrow reads the whole file; only if that fails is the file parsed line by line, to find the invalid line.
"""

from __future__ import annotations

import contextlib
import csv
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import csv as arrow_csv

from ...errors import OneshuiError
from ..column_inference import Table
from ..images import LFS_POINTER

WHOLE_NUMBER = re.compile(r"-?[0-9]{1,9}")  # always fits an int32
WEB_PAGE = re.compile(rb"\s*<(!doctype|html|head|body|\?xml)", re.IGNORECASE)


def read_integer_table(file: Path, columns: Sequence[str], *, named: bool = False) -> pd.DataFrame:
    """Read a table with one row per photo: the photo name is the index, all other columns are integers.

    Args:
        file: The annotation file.
        columns: Names of the columns after the photo name.
        named: The header must contain these names, in any order; otherwise the header is optional and its content is ignored.

    Raises:
        OneshuiError: The file is missing, is a web page or an LFS pointer, has other columns, has a line with the wrong number of
            columns or a value that is not an integer (the message names the line), or contains a photo twice.
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
        raise lines.find_error(len(columns) + 1) or OneshuiError(f"{file} cannot be read ({error}); repair it.") from None
    names = pd.Index([name.strip() for name in table.column(photo).to_pylist()], dtype=object)  # faster lookup than Arrow text
    if names.has_duplicates:
        number, name = lines.find_duplicate()
        raise OneshuiError(f"Line {number} of {file} contains {name} a second time; remove one of its lines.")
    if table.num_rows and any(column.null_count for column in table.columns):
        raise lines.find_error(len(columns) + 1) or OneshuiError(f"{file} has empty cells; fill them in.")
    return table.select(list(columns)).to_pandas().set_index(names)


class _Lines:
    """The lines of an annotation file, with its header, the first line of its rows, and its separator."""

    def __init__(self, file: Path, text: bytes) -> None:
        self.file, self.text = file, text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        head = self.text[:10_000].decode(errors="replace").split("\n")
        filled = [number for number, line in enumerate(head) if line.strip()]
        if filled and head[filled[0]].strip().isdigit():  # the number of rows
            del filled[0]
        start = filled[0] if filled else len(head)
        self.separator = "," if any("," in head[number] for number in filled[:2]) else " "
        first = self.cells(head[start]) if filled else []
        # A first line with a photo name is a row, even an invalid one: treated as a header, it would be ignored.
        has_header = bool(first) and "." not in first[0] and not any(map(WHOLE_NUMBER.fullmatch, first))
        self.header = first if has_header else []
        self.first = start + 1  # line number of the header
        self.start = start + has_header  # number of lines before the rows

    @classmethod
    def read(cls, file: Path) -> _Lines:
        try:
            text = file.read_bytes()
        except FileNotFoundError:
            raise OneshuiError(f"Annotation file {file} does not exist.") from None
        text = text.removeprefix(b"\xef\xbb\xbf")
        reject_placeholder(file, text[:1000])
        try:
            text.decode()
        except UnicodeDecodeError:
            raise OneshuiError(f"{file} is not a text file.") from None
        if not text.strip():
            raise OneshuiError(f"{file} is empty.")
        return cls(file, text)

    @property
    def body(self) -> bytes:
        """The rows, with one space between cells and none at the ends, since Arrow does not support repeated separators."""
        body = self.text.split(b"\n", self.start)[-1] if self.start else self.text  # Arrow ignores empty lines
        if self.separator == " ":
            body = body.replace(b"\t", b" ")
            while b"  " in body:
                body = body.replace(b"  ", b" ")
            body = body.replace(b" \n", b"\n").replace(b"\n ", b"\n").strip(b" ")
        return body

    def cells(self, line: str) -> list[str]:
        return [cell.strip().strip('"') for cell in line.split(",")] if self.separator == "," else line.split()

    def rows(self) -> list[tuple[int, list[str]]]:
        """Return (line number, cells) of every row."""
        lines = enumerate(self.text.decode().split("\n")[self.start :], self.start + 1)
        return [(number, self.cells(line)) for number, line in lines if line.strip()]

    def find_error(self, columns: int) -> OneshuiError | None:
        """Return an error that describes the first invalid row, or None."""
        for number, cells in self.rows():
            if len(cells) != columns:
                return OneshuiError(f"Line {number} of {self.file} has {len(cells)} columns instead of {columns}; repair or remove it.")
            for cell in cells[1:]:
                if not WHOLE_NUMBER.fullmatch(cell):
                    return OneshuiError(
                        f"Line {number} of {self.file} contains '{cell}' instead of an integer of up to 9 digits; repair or remove it."
                    )
        return None

    def find_duplicate(self) -> tuple[int, str]:
        seen: set[str] = set()
        for number, (name, *_) in self.rows():
            if name in seen:
                return number, name
            seen.add(name)
        raise AssertionError("every photo occurs once")

    def line_of(self, row: int) -> int:
        """Return the line number of a row of the table."""
        return self.rows()[row][0]


def line_of(file: Path, row: int) -> int:
    """Return the line number of a row of the table in this file, for messages."""
    return _Lines.read(file).line_of(row)


def read_text_table(file: Path) -> Table:
    """Read a CSV file with a header as text; a `.tsv` file is separated by tabs. An empty cell is "", and rows of empty cells are ignored.

    Raises:
        OneshuiError: The file is missing or damaged; the message names the invalid line, if there is one.
    """
    with _report_damaged_table(file):
        _check_header(file)
        frame = _read_csv(file).fillna("")
    filled = frame.apply(lambda column: column.str.strip() != "").any(axis=1)
    return Table(file.name, frame[filled].reset_index(drop=True), lambda row: f"Line {_line(file, row)} of {file}")


def read_text_column(file: Path, choose: Callable[[Sequence[str]], str]) -> list[str]:
    """Read one column of such a file, which is faster than all.

    Args:
        file: The file.
        choose: Returns the column's name, from all names.

    Raises:
        OneshuiError: The file is missing or damaged.
    """
    with _report_damaged_table(file):
        _check_header(file)
        names = _read_csv(file, nrows=0).columns.tolist()
        column = choose(names)
        return _read_csv(file, usecols=[names.index(column)]).iloc[:, 0].fillna("").tolist()


def _read_csv(file: Path, **options: Any) -> pd.DataFrame:
    return pd.read_csv(
        file, sep=_separator(file), dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False, low_memory=False, **options
    )


def _separator(file: Path) -> str:
    return "\t" if file.suffix.lower() == ".tsv" else ","


@contextlib.contextmanager
def _report_damaged_table(file: Path) -> Iterator[None]:
    """Report in one sentence that a file is missing or not a table."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # the first row is longer than the header
            yield
    except FileNotFoundError:
        raise OneshuiError(f"Annotation file {file} does not exist.") from None
    except pd.errors.ParserWarning:
        raise OneshuiError(f"{file} is not a readable CSV file: its first row has more columns than its header.") from None
    except UnicodeDecodeError:
        raise OneshuiError(f"{file} is not a readable CSV file: it is not UTF-8 text; save it as UTF-8.") from None
    except (csv.Error, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise OneshuiError(f"{file} is not a readable CSV file: {str(error).strip()}.") from None


def _check_header(file: Path) -> None:
    """Check that the header can be read.

    Raises:
        OneshuiError: The file is a placeholder, or its header contains a column twice, or uses another separator.
    """
    with file.open("rb") as opened:
        reject_placeholder(file, opened.read(1000))
    with file.open(encoding="utf-8-sig", newline="") as text:
        names = next(csv.reader(text, delimiter=_separator(file)), [])
    if duplicate := next((name for name in names if names.count(name) > 1 and name), None):
        raise OneshuiError(f"{file} has two columns called '{duplicate}'; rename one of them.")
    if len(names) == 1 and (other := next((mark for mark in ";\t|" if mark in names[0]), None)):
        raise OneshuiError(f"{file} is separated by {'tabs' if other == chr(9) else other}, not by commas; save it with commas.")
    if len(names) == 1 and file.suffix.lower() == ".tsv" and "," in names[0]:
        raise OneshuiError(f"{file} is separated by commas, not by tabs; name it .csv.")


def _line(file: Path, row: int) -> int:
    """Return the line number at which a row ends. Rows of empty cells are not counted, and a quoted cell may span several lines."""
    with file.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter=_separator(file))
        lines = [reader.line_num for cells in reader if any(cell.strip() for cell in cells)]
    return lines[row + 1]  # the first is the header


def reject_placeholder(file: Path, start: bytes) -> None:
    """Reject a placeholder that a download stored instead of the file.

    Raises:
        OneshuiError: The file is a web page or a Git LFS pointer.
    """
    if WEB_PAGE.match(start):
        raise OneshuiError(
            f"{file} is a web page, not the annotation file: the download was rejected, often for an exceeded quota. Download it again."
        )
    if start.startswith(LFS_POINTER):
        raise OneshuiError(f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository.")
