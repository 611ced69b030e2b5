"""Text of others on terminals and in files: what is escaped, and what stays."""

from __future__ import annotations

import json
import unicodedata

import pytest

from oneshui_hf.errors import OneshuiError
from oneshui_hf.printable import csv_cell, escape_json, escape_markdown, printable, shorten
from oneshui_hf.runs import dump_json

ESCAPED = [
    ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
    ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
    ("a\nError: b", "a\\nError: b"),
    ("a\r\tb\x00", "a\\r\\tb\\x00"),
    ("a\x7f\x9b31m\x85", "a\\x7f\\x9b31m\\x85"),
    ("\u202egnp.exe", "\\u202egnp.exe"),
    ("a\u2066\u2069\u200e\u200f\u061c", "a\\u2066\\u2069\\u200e\\u200f\\u061c"),
    ("a\u200bb\u200cc\u200dd", "a\\u200bb\\u200cc\\u200dd"),
    ("\u2060\ufeff\xad", "\\u2060\\ufeff\\xad"),
    ("\u2028\u2029", "\\u2028\\u2029"),
    ("\U000e0041\U000e007f", "\\U000e0041\\U000e007f"),
    ("\udcff\ud83d", "\\udcff\\ud83d"),
    ("\ufffe\U0010ffff", "\\ufffe\\U0010ffff"),
]
UNCHANGED = [
    "Smiling, 5_o_Clock_Shadow",
    "naïve é e\u0301",
    "日本語 中文 한국어",
    "مرحبا שלום",
    "می\u200cخواهم",  # noqa: RUF001  Persian, with a joiner
    "क्\u200dष",  # Hindi, with a joiner
    "😀 👩\u200d👩\u200d👧 👩🏽\u200d🚀 ❤\ufe0f\u200d🔥",
    "C:\\faces [x] {y} <z> 'q' \"r\" %s\u00a0†",
]


@pytest.mark.parametrize(("text", "expected"), ESCAPED)
def test_what_a_terminal_obeys_and_what_is_invisible_is_escaped(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert printable(expected) == expected


@pytest.mark.parametrize("text", UNCHANGED)
def test_ordinary_text_of_any_script_is_unchanged(text: str) -> None:
    assert printable(text) == text
    assert escape_json(json.dumps(text, ensure_ascii=False)) == json.dumps(text, ensure_ascii=False)


def test_every_control_and_format_character_is_escaped_and_no_letter() -> None:
    scripts = ("ARABIC", "SYRIAC", "KAITHI", "EGYPTIAN")
    visible = {number for number in range(0x110000) if unicodedata.name(chr(number), "").startswith(scripts)}
    fillers = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0}  # letters and marks that no font shows
    for number in range(0x110000):
        category, changed = unicodedata.category(chr(number)), printable(f"a{chr(number)}b") != f"a{chr(number)}b"
        if category in ("Cc", "Cs", "Zl", "Zp") or (category == "Cf" and number not in visible) or number == 0x061C:
            assert changed, hex(number)
        elif category not in ("Cf", "Cn") and number not in fillers:
            assert not changed, hex(number)


def test_line_breaks_stay_where_they_are_meant() -> None:
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"


@pytest.mark.parametrize("text", [text for text, _ in ESCAPED] + UNCHANGED)
def test_json_keeps_its_values(text: str) -> None:
    written = escape_json(json.dumps({text: [text]}, indent=2, ensure_ascii=False))
    assert json.loads(written) == {text: [text]}
    assert printable(written, keep="\n") == written


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[x](javascript:y)", r"\[x\](javascript:y)"),
        ("a|b\n---\n# c", r"a\|b\\n---\\n\# c"),
        ("<script>&lt;", r"\<script\>\&lt;"),
        ("`code` *b* ~~c~~", r"\`code\` \*b\* \~\~c\~\~"),
    ],
)
def test_markdown_is_neither_markup_nor_html(text: str, expected: str) -> None:
    assert escape_markdown(text) == expected


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "=cmd|' /C calc'!A0"])
def test_text_that_begins_like_a_formula_is_quoted(text: str) -> None:
    assert csv_cell(text) == f"'{text}"
    assert csv_cell(f"a{text}") == f"a{text}"


@pytest.mark.parametrize("text", ["\t=1+1", "\r=1", "\x00=1", "\ufeff=1"])
def test_a_formula_behind_an_escaped_character_is_text(text: str) -> None:
    assert str(csv_cell(text)).startswith("\\")


def test_numbers_are_no_text() -> None:
    assert csv_cell(-1.5) == -1.5
    assert csv_cell(None) is None


def test_the_middle_of_a_long_text_is_left_out() -> None:
    assert shorten("a" * 100, 100) == "a" * 100
    short = shorten("a" * 500 + "b" * 500, 100)
    assert len(short) == 100
    assert short.startswith("aaa")
    assert short.endswith("bbb")


def test_files_of_json_are_safe_on_a_terminal() -> None:
    value = {"a\x9b\u202e": ["b\x7f", "é 中文"]}
    written = dump_json(value)
    assert json.loads(written) == value
    assert printable(written.decode(), keep="\n") == written.decode()
    assert "é 中文".encode() in written
    with pytest.raises(OneshuiError, match=r"not UTF-8.*photo\\udcff\.png"):
        dump_json({"photo\udcff.png": 1})
