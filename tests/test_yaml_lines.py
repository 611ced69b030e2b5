"""YAML as it is written: text, tags, lines and limits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from oneshui_hf.errors import UsageError
from oneshui_hf.yaml_lines import LocatedList, LocatedMapping, Written, YamlFile, is_null, parse_mapping

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


def test_written_text_is_text() -> None:
    found = parse("a: 011")["a"]
    assert isinstance(found, Written)
    assert json.dumps({"a": found}) == '{"a": "011"}'
    assert type(str(found)) is str
