"""JSON files of others: bounded in size, depth and numbers, and never waited for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from oneshui_hf import json_text
from oneshui_hf.errors import OneshuiError
from oneshui_hf.runs import hash_file, read_json, read_object


def test_values_are_read_as_they_are() -> None:
    assert json_text.parse_json(b'{"a": [1, 2.5, null, true, "\xc3\xbc\\u00fc\\ud83d\\ude00"], "b": {}}') == {
        "a": [1, 2.5, None, True, "üü😀"],
        "b": {},
    }
    assert json_text.parse_json(b'{"a": 1, "a": 2}') == {"a": 2}
    assert json_text.parse_json(b"[" * 64 + b"]" * 64)
    assert json_text.parse_json(str(-(2**63)).encode()) == -(2**63)
    assert json_text.parse_json(rb'"C:\\users"') == r"C:\users"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1', "Expecting"),
        (b"\xff\xfe{}", "can't decode byte"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"NaN", "NaN or an infinite number"),
        (b'{"a": [1, -Infinity]}', "NaN or an infinite number"),
        (b'{"a": 1e999}', "NaN or an infinite number"),
        (b"9" * 20, "an integer of more than 64 bits"),
        (b"9" * 5000, "4300 digits"),
        (b"[" * 65 + b"]" * 65, "more than 64 levels"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "more than 64 levels"),
        (rb'{"a": "\ud800"}', "surrogates"),
        (rb'{"\udfff": 1}', "surrogates"),
        (rb'{"a": ["\u0000"]}', "the character NUL"),
    ],
    ids=lambda value: str(value[:20]),
)
def test_other_text_is_refused_in_one_sentence(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(OneshuiError, match=message) as raised:
        read_json(tmp_path / "a.json")
    assert str(raised.value).startswith(f"{tmp_path / 'a.json'} is not JSON (")
    assert len(str(raised.value)) < 500


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"[" * 1_000_000)
    with pytest.raises(OneshuiError, match="is not JSON"):
        read_json(tmp_path / "a.json")


def test_large_file_is_refused_without_reading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "MAX_BYTES", 10)
    monkeypatch.setattr("oneshui_hf.runs.MAX_BYTES", 10)
    (tmp_path / "a.json").write_bytes(b"[1, 2, 3]")
    assert read_json(tmp_path / "a.json") == [1, 2, 3]
    os.truncate(tmp_path / "a.json", 10**12)
    with pytest.raises(OneshuiError, match="it has more than"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda file: None, "is missing"),
        (lambda file: file.mkdir(), "is not a regular file"),
        (lambda file: os.mkfifo(file), "is not a regular file"),
        (lambda file: file.symlink_to(file.name), "is a link that leads to itself"),
        (lambda file: file.symlink_to("absent"), "is missing"),
        (lambda file: file.symlink_to("/dev/zero"), "is not a regular file"),
    ],
    ids=["missing", "folder", "pipe", "loop", "dangling", "device"],
)
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    file = tmp_path / "a.json"
    make(file)
    with pytest.raises(OneshuiError, match=message):
        read_object(file)
    with pytest.raises((OneshuiError, FileNotFoundError)):
        hash_file(file)


def test_file_in_place_of_a_folder_counts_as_missing(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(OneshuiError, match="is missing"):
        read_json(tmp_path / "run" / "a.json")
