"""YAML as it is written: text, tags, lines and limits."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from oneshui_hf.errors import UsageError
from oneshui_hf.yaml_lines import MAX_FILE_BYTES, LocatedList, LocatedMapping, Written, YamlFile, is_null, parse_mapping, read_yaml_text

FILE = YamlFile("f.yaml", "a configuration", "'option: value' lines")


def parse(text: str) -> Any:
    return parse_mapping(text, FILE)


WORDS = [
    "011",
    "9",
    "yes",
    "No",
    "off",
    "1e3",
    "0x1F",
    "0o17",
    "0b1",
    "1_000",
    "12:30:00",
    "2024-01-01",
    "1.0",
    ".5",
    ".inf",
    "=",
    "<<",
    "null",
    "~",
]


@pytest.mark.parametrize("word", WORDS)
def test_scalars_are_kept_as_they_are_written(word: str) -> None:
    for text in (f"a: {word}", f"a: [{word}]", f'a: "{word}"', f"a: !!str {word}"):
        found = parse(text)["a"]
        item = found[0] if isinstance(found, list) else found
        assert item == word
        assert item.location == "f.yaml, line 1"
    assert parse(f'a: "{word}"')["a"].tag == "str"


def test_keys_are_kept_as_they_are_written() -> None:
    assert list(parse("yes: 1\n012: 2\nnull: 3\n")) == ["yes", "012", "null"]


def test_every_value_has_its_line() -> None:
    found = parse("a: 1\nb:\n  - x\n  - y\nc:\n  d: 2\n")
    assert isinstance(found, LocatedMapping)
    assert isinstance(found["b"], LocatedList)
    assert [found["a"].location, found["b"][1].location, found["c"]["d"].location] == [f"f.yaml, line {n}" for n in (1, 4, 6)]
    assert (found["b"].lines, found.lines["c"], found["c"].line) == ([3, 4], 5, 6)


@pytest.mark.parametrize("text", ["a:", "a: null", "a: ~", "a: NULL"])
def test_nothing_is_recognised(text: str) -> None:
    assert is_null(parse(text)["a"])
    assert not is_null(parse("a: 'null'")["a"])
    assert is_null(None)
    assert not is_null("")


def test_json_is_read_with_characters_outside_of_the_basic_plane() -> None:
    assert parse(json.dumps({"a": ["😀", "日本"]}))["a"] == ["😀", "日本"]


def test_merged_keys_are_not_its_own() -> None:
    found = parse("x: &x {lr: 1, seed: 2}\ny: {<<: *x, lr: 3}\n")["y"]
    assert (dict(found), found.own) == ({"lr": "3", "seed": "2"}, ["<<", "lr"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.yaml must consist of 'option: value' lines."),
        ("- a", "f.yaml must consist of 'option: value' lines."),
        ("a: 1\nb: [1", "f.yaml, line 2, is not readable YAML: "),
        ("a: 1\na: 2", "f.yaml, line 2, is not readable YAML: 'a' is given twice."),
        ("? [a]\n: 1", "f.yaml, line 1, is not readable YAML: a key is not a word."),
        ("a: !!python/object:os.system x", "f.yaml, line 1, is not readable YAML: the tag "),
        ("a: !!set {x, y}", "f.yaml, line 1, is not readable YAML: the tag "),
        ("a: !!binary aGk=", "f.yaml, line 1, is not readable YAML: the tag "),
        ("a: *b", "f.yaml, line 1, is not readable YAML: "),
        ("a: &a [*a]", "f.yaml is nested too deeply or repeats itself too often to be a configuration."),
        ("a: " + "[" * 500, "f.yaml is nested too deeply or repeats itself too often to be a configuration."),
        ('a: "\\ud83d"', "f.yaml is not readable YAML: "),
        ("a: \x00", "f.yaml is not readable YAML: "),
    ],
)
def test_what_is_no_mapping_is_refused_in_one_sentence(text: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse(text)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


SIZE = MAX_FILE_BYTES - 20
LARGE = {
    "aliases": "".join(f"k{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]\n" for n in range(12)),
    "merges": "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 10)),
    "a chain of merges": "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: *a{n - 1}, k{n}: 1}}\n" for n in range(1, 2000)),
    "a mapping that merges itself": "&a {<<: *a}",
    "anchors": "".join(f"a{n}: &x{n} 1\n" for n in range(6000)),
    "keys": "".join(f"k{n}: 1\n" for n in range(9000)),
    "values": "a: [" + "x," * (SIZE // 2) + "]",
    "mappings": "a: [" + "{}," * (SIZE // 3) + "]",
    "brackets": "a: " + "[" * SIZE,
    "braces": "a: " + "{a: " * (SIZE // 4),
    "indented keys": "".join(" " * n + "a:\n" for n in range(400)),
    "dashes": "a:\n " + "- " * (SIZE // 2),
    "questions": "? " * (SIZE // 2),
    "documents": "a: 1\n---\n" * (SIZE // 9),
    "colons": ":" * SIZE,
    "a comment": "#" * SIZE,
    "an anchor": "a: *" + "x" * SIZE,
    "a tag": "a: !<" + "x" * SIZE,
    "a quoted text without an end": "a: '" + "x" * SIZE,
    "blank lines in a text": "a: 'x" + "\n" * SIZE,
    "a key without a value": "x" * SIZE + ": 1",
    "a repeated long key": f"{'k' * 900}: 1\n" * 3,
    "a version": "%YAML 1." + "9" * SIZE + "\n--- {a: 1}",
    "a character that does not exist": 'a: "\\UFFFFFFFF"',
    "half characters": 'a: "' + "\\ud83d" * (SIZE // 6) + '"',
}


@pytest.mark.parametrize("name", LARGE)
def test_large_and_nested_texts_are_refused_in_a_moment(name: str) -> None:
    started = time.process_time()
    with pytest.raises(UsageError) as raised:
        parse(LARGE[name])
    assert time.process_time() - started < 2
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("text", ["a: " + "9" * SIZE, "a: " + "x" * SIZE, "a: >\n" + "  x\n" * (SIZE // 4), "a: [" + "1," * 9000 + "]"])
def test_long_texts_and_lists_are_read_in_a_moment(text: str) -> None:
    started = time.process_time()
    assert list(parse(text)) == ["a"]
    assert time.process_time() - started < 2


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_end_with_one_sentence(seed: int) -> None:
    rng = random.Random(seed)
    text = "name: g\nbase: &b {lr: 1e-3, 'x y': \"\\u00e9\"}\ndatasets:\n  - {<<: *b, dataset: synthetic}\n  - !!str a\nlong: >\n  x\n  y\n"
    for _ in range(150):
        characters = list(text)
        for _ in range(rng.randint(1, 6)):
            characters[rng.randrange(len(characters))] = rng.choice("[]{}:,&*!|>'\"%@`#?-\n\t \x00\x85\ufeff\\Ux0<=~")
        try:
            assert isinstance(parse("".join(characters)), LocatedMapping)
        except UsageError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to itself", "large", "utf-16", "latin-1"])
def test_what_is_no_text_file_is_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "f.yaml"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    elif kind == "link to itself":
        file.symlink_to(file)
    else:
        file.write_bytes({"large": b"#" * (MAX_FILE_BYTES + 1), "utf-16": "a: 1".encode("utf-16"), "latin-1": b"a: \xe9"}[kind])
    with pytest.raises(UsageError) as raised:
        read_yaml_text(file, FILE)
    assert "f.yaml" in str(raised.value)


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text("a: 1\n", encoding="utf-8-sig")
    assert parse(read_yaml_text(tmp_path / "f.yaml", FILE)) == {"a": "1"}


def test_written_text_is_text() -> None:
    found = parse("a: 011")["a"]
    assert isinstance(found, Written)
    assert json.dumps({"a": found}) == '{"a": "011"}'
    assert type(str(found)) is str
