"""Annotation files: tables with any padding, separators, line ends and header equal the result of a plain parser."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from oneshui_hf.data.builders.annotation_files import line_of, read_integer_table
from oneshui_hf.errors import OneshuiError

NAMES = st.from_regex(r"[A-Za-z0-9_]{1,6}\.(jpg|JPG|png)", fullmatch=True)
NUMBERS = st.integers(-999_999_999, 999_999_999)
COLUMNS = ("x", "y", "width")

Rows = dict[str, list[int]]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text") / "table.txt"


def rows_in(table: pd.DataFrame) -> Rows:
    return dict(zip(table.index, table.to_numpy().tolist(), strict=True))


@st.composite
def tables(draw: st.DrawFn, header: Sequence[str] | None = None) -> tuple[Rows, bytes]:
    """Draw rows, and one of many notations of them."""
    width = len(COLUMNS) if header else draw(st.integers(1, 3))
    rows = draw(st.dictionaries(NAMES, st.lists(NUMBERS, min_size=width, max_size=width), min_size=1, max_size=6))
    comma = draw(st.booleans())
    space = st.text(" \t", max_size=2)

    def join(cells: Sequence[Any]) -> str:
        between = [draw(space) + "," + draw(space) if comma else draw(st.text(" \t", min_size=1, max_size=3)) for _ in cells[1:]]
        return draw(space) + "".join(f"{cell}{gap}" for cell, gap in zip(cells, [*between, ""], strict=True)) + draw(space)

    lines = [join([name, *values]) for name, values in rows.items()]
    if header:
        lines.insert(0, join([*draw(st.sampled_from(([""], ["image_id"]) if comma else ([], ["image_id"]))), *header]))
    elif draw(st.booleans()):
        lines.insert(0, join(["image_id", "identity", "y", "z"][: 1 + width]))
    if draw(st.booleans()):
        lines.insert(0, str(len(rows)))
    for place in draw(st.lists(st.integers(0, len(lines)), max_size=3)):
        lines.insert(place, "" if comma else draw(space))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = end.join(lines) + draw(st.sampled_from(["", end, 3 * end]))
    return rows, text.encode(draw(st.sampled_from(["utf-8", "utf-8-sig"])))


@settings(max_examples=150, deadline=None)
@given(tables())
def test_table_is_read_in_any_notation(file: Path, written: tuple[Rows, bytes]) -> None:
    rows, content = written
    file.write_bytes(content)
    table = read_integer_table(file, COLUMNS[: len(next(iter(rows.values())))])
    assert rows_in(table) == rows
    assert list(table.index) == list(rows)


@settings(max_examples=100, deadline=None)
@given(st.permutations(COLUMNS).flatmap(lambda header: st.tuples(st.just(header), tables(header))))
def test_named_columns_are_found_in_any_order(file: Path, case: tuple[list[str], tuple[Rows, bytes]]) -> None:
    header, (rows, content) = case
    file.write_bytes(content)
    table = read_integer_table(file, COLUMNS, named=True)
    assert list(table.columns) == list(COLUMNS)
    assert rows_in(table[header]) == rows


@settings(max_examples=300, deadline=None)
@given(st.text("ab.01- \t,\n\r", max_size=60).filter(str.strip))
@example("a.a 1\n \n\t\nb.b 1")
@example("a.a,1\rb.b,-1\r\n\r\n")
def test_result_for_any_text_equals_its_lines(file: Path, text: str) -> None:
    file.write_text(text, newline="")
    try:
        found = rows_in(read_integer_table(file, ("x",)))
    except OneshuiError:
        return
    lines = [[cell.strip() for cell in re.split("," if "," in text else r"\s+", line.strip())] for line in re.split("[\r\n]+", text)]
    lines = [cells for cells in lines if any(cells)]
    skipped = lines[: len(lines) - len(found)]
    assert len(skipped) <= 2  # a count and a header
    assert not any("." in name and rest for name, *rest in skipped)
    assert found == {name: [int(value)] for name, value in lines[len(skipped) :]}


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=60),
    st.sampled_from([b"", b"a.jpg 1\n", b"2\nphoto x\na.jpg 1\n", b"photo,x\na.jpg,1\n", b"\xef\xbb\xbf"]),
    st.booleans(),
)
def test_any_bytes_give_a_table_or_a_oneshui_error(file: Path, content: bytes, before: bytes, named: bool) -> None:
    file.write_bytes(before + content)
    try:
        table = read_integer_table(file, ("x",), named=named)
    except OneshuiError as error:
        assert str(file) in str(error)
    else:
        assert table.index.is_unique
        assert list(table.dtypes) == ["int32"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("c.jpg", "has 1 columns instead of 2"),
        ("c.jpg{}1{}2", "has 3 columns instead of 2"),
        ("c.jpg{}x", "contains 'x' instead of an integer"),
        ("c.jpg{}1.5", r"contains '1\.5' instead"),
        ("c.jpg{}+1", r"contains '\+1' instead"),
        ("c.jpg{}NA", "contains 'NA' instead"),
        ("c.jpg{}3000000000", "contains '3000000000' instead"),
        ("a.jpg{}5", r"contains a\.jpg a second time"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("separator", "start"), [(" ", []), ("  ", ["2", "", "image identity"]), (",", ["", "image,identity", ""])])
def test_message_names_the_invalid_line_after_blank_lines(
    file: Path, row: str, message: str, end: str, separator: str, start: list[str]
) -> None:
    lines = [*start, f"a.jpg{separator}1", "", "", f"b.jpg{separator}2", "", row.replace("{}", separator), f"d.jpg{separator}4"]
    file.write_bytes(end.join(lines).encode())
    with pytest.raises(OneshuiError, match=f"^Line {len(start) + 6} of {file} {message}"):
        read_integer_table(file, ("identity",))


def test_invalid_first_row_is_not_treated_as_a_header(file: Path) -> None:
    for row in ("a.jpg x", "a.jpg 1 x", "1 2 x"):
        file.write_text(f"{row}\nb.jpg 2\n")
        with pytest.raises(OneshuiError, match="^Line 1 of"):
            read_integer_table(file, ("identity",))


def test_form_feed_does_not_change_line_numbers(file: Path) -> None:
    file.write_text("a\x0cb.jpg,1\nc\u2028d.jpg,2\ne.jpg,x\n")
    with pytest.raises(OneshuiError, match="^Line 3 of"):
        read_integer_table(file, ("identity",))


def test_line_number_of_a_row_counts_all_lines(file: Path) -> None:
    file.write_bytes(b"2\r\n\r\nimage identity\r\na.jpg 1\r\n \r\n\r\nb.jpg 2\r\n")
    assert [line_of(file, row) for row in range(2)] == [4, 7]


def test_header_with_other_columns_raises(file: Path) -> None:
    for header in ("image x z", "x x", "a.jpg 1 2"):
        file.write_text(f"\n{header}\na.jpg 1 2\n")
        with pytest.raises(OneshuiError, match=f"Line 2 of {file} does not name the 2 attributes"):
            read_integer_table(file, ("x", "y"), named=True)


def test_file_without_rows_raises(file: Path) -> None:
    for text in ("image identity\n", "0\n", "0\nimage identity"):
        file.write_text(text)
        with pytest.raises(OneshuiError, match=str(file)):
            read_integer_table(file, ("identity",))


def test_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(OneshuiError, match=f"Annotation file {tmp_path / 'absent.txt'} does not exist"):
        read_integer_table(tmp_path / "absent.txt", ("identity",))


@pytest.mark.parametrize("content", [b"<!doctype html>", b"\xef\xbb\xbf\r\n <HTML>", b'<?xml version="1.0"?>', b"<head><title>"])
def test_web_page_raises(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(OneshuiError, match=f"{file} is a web page, not the annotation file"):
        read_integer_table(file, ("identity",))


def test_published_attributes_equal_a_plain_parser(assets: Path) -> None:
    place = assets / "annotations/celeba/list_attr_celeba.first2000_blankheader.csv"
    header, *lines = [line.split(",") for line in place.read_text().splitlines()]
    table = read_integer_table(place, header[1:], named=True)
    assert rows_in(table) == {name: list(map(int, values)) for name, *values in lines}
