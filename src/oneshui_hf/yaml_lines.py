"""YAML files with line numbers, read within limits. Scalars stay as they are written.

YAML turns words into other things: `011` into 9, `no` into false, `2024-01-01` into a date. A person may have each of these names. So the
reader keeps the text, and `options.convert` decides by the type of the option what it means.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from .errors import OneshuiError, UsageError, did_you_mean, first_line
from .files import open_regular

MAX_FILE_BYTES = 100_000
MAX_SHOWN_CHARACTERS = 40  # of an invalid value in a message
MAX_VALUES, MAX_DEPTH = 10_000, 12  # of a file, with its aliases expanded
TAG = "tag:yaml.org,2002:"
SCALAR_TAGS = {"str", "int", "float", "bool", "null", "timestamp", "merge", "value"}  # "value" is the tag of "="


class Written(str):
    """A scalar as it is written in a file.

    Attributes:
        tag: The type that YAML would give it: "str", "int", "float", "bool", "null", "timestamp", ...; "str" for quoted text.
        location: File and line, for messages.
    """

    tag: str
    location: str


class LocatedMapping(dict[str, Any]):
    """A mapping of the file. Keys are `Written`.

    Attributes:
        line: Its line.
        lines: The line of each key.
        own: The keys that are written in it, not merged into it with `<<`.
        location: File and line, for messages.
    """

    line: int
    lines: dict[str, int]
    own: list[str]
    location: str


class LocatedList(list[Any]):
    """A list of the file, with the line of each item."""

    lines: list[int]
    location: str


@dataclasses.dataclass(frozen=True)
class YamlFile:
    """A YAML file.

    Attributes:
        name: Its name in messages.
        noun: What it is, for messages ("a grid").
        content: What it consists of, for messages ("'option: value' lines").
    """

    name: str
    noun: str
    content: str

    def locate(self, within: LocatedMapping, key: str | None = None) -> str:
        """Return the location of a mapping, or of one of its keys, for messages."""
        return f"{self.name}, line {within.line if key is None else within.lines[key]}"


def is_null(value: Any) -> bool:
    """Whether a value of a file is missing or one of YAML's words for nothing: an empty value, `null`, `~`."""
    return value is None or (isinstance(value, Written) and value.tag == "null")


def read_yaml_text(path: Path, file: YamlFile) -> str:
    """Return the text of a file that exists.

    Raises:
        UsageError: It is too large, cannot be read, or is not UTF-8 text.
    """
    try:
        with open_regular(path) as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise UsageError(f"{file.name} is larger than {MAX_FILE_BYTES // 1000} kB, so it is not {file.noun}.")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{file.name} cannot be read: {error.strerror}.") from None
    except OneshuiError as error:  # a pipe, a device
        raise UsageError(str(error)) from None
    except UnicodeDecodeError:
        raise UsageError(f"{file.name} is not readable YAML: it is not UTF-8 text.") from None


def parse_mapping(text: str, file: YamlFile) -> LocatedMapping:
    """Return the mapping in a YAML text.

    Raises:
        UsageError: The text is not YAML, not a mapping, or larger than any such file.
    """
    try:
        loader = _BoundedLoader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise UsageError(f"{file.name} must consist of {file.content}.")
        if _count_values(node, {}) > MAX_VALUES:
            raise _TooLargeError
        return _Reader(loader, file.name).mapping(node)
    except _TooLargeError:
        raise UsageError(f"{file.name} is nested too deeply or repeats itself too often to be {file.noun}.") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{file.name}{line}, is not readable YAML: {_reason(error.context, error.problem)}.") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last for an escape of a character that does not exist
        raise UsageError(f"{file.name} is not readable YAML: {_reason(error)}.") from None


def _reason(*parts: object) -> str:
    """Return what is wrong with a YAML text, in one line of limited length."""
    return first_line(ValueError(", ".join(" ".join(str(part).split()) for part in parts if part)))


class _TooLargeError(Exception):
    """A text has more values or levels than any such file."""


class _BoundedLoader(yaml.SafeLoader):
    """A loader that ends at the limits while it parses, not afterwards."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Count a value, then compose it."""
        self._values, self._depth = self._values + 1, self._depth + 1
        if self._values > MAX_VALUES or self._depth > MAX_DEPTH:
            raise _TooLargeError
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _count_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of values in a node with aliases expanded.

    Raises:
        yaml.MarkedYAMLError: A key is not a word, or is given twice; YAML would silently use the last value.
    """
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1  # seen again before its count is known, the node contains itself
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                    wrong = f"{describe_value(key.value)} is given twice" if isinstance(key, yaml.ScalarNode) else "a key is not a word"
                    raise yaml.MarkedYAMLError(problem=wrong, problem_mark=key.start_mark)
                seen.add(key.value)
            children = [value for _, value in node.value]
        else:
            children = node.value if isinstance(node, yaml.SequenceNode) else []
        known[id(node)] = 1 + sum(_count_values(child, known) for child in children)
    return known[id(node)]


class _Reader:
    """Turns the nodes of a file into located values."""

    def __init__(self, loader: yaml.SafeLoader, name: str) -> None:
        self._loader, self._name = loader, name

    def mapping(self, node: yaml.MappingNode) -> LocatedMapping:
        own = [key.value for key, _ in node.value]
        self._loader.flatten_mapping(node)
        keys = [self._scalar(key) for key, _ in node.value]
        found = LocatedMapping(zip(keys, (self._value(value) for _, value in node.value), strict=True))
        found.lines = {word: key.start_mark.line + 1 for word, (key, _) in zip(keys, node.value, strict=True)}
        found.line, found.own, found.location = node.start_mark.line + 1, own, self._locate(node)
        return found

    def _value(self, node: yaml.Node) -> Any:
        tag = node.tag.removeprefix(TAG)
        if isinstance(node, yaml.ScalarNode) and tag in SCALAR_TAGS:
            return self._scalar(node)
        if isinstance(node, yaml.MappingNode) and tag == "map":
            return self.mapping(node)
        if isinstance(node, yaml.SequenceNode) and tag == "seq":
            found = LocatedList(self._value(item) for item in node.value)
            found.lines, found.location = [item.start_mark.line + 1 for item in node.value], self._locate(node)
            return found
        raise yaml.MarkedYAMLError(problem=f"the tag {node.tag!r} is not known here", problem_mark=node.start_mark)

    def _scalar(self, node: yaml.ScalarNode) -> Written:
        # JSON writes an emoji as two escapes, which the YAML parser leaves as two halves.
        found = Written(node.value.encode("utf-16", "surrogatepass").decode("utf-16"))
        found.tag, found.location = node.tag.removeprefix(TAG), self._locate(node)
        return found

    def _locate(self, node: yaml.Node) -> str:
        return f"{self._name}, line {node.start_mark.line + 1}"


@contextlib.contextmanager
def prefix_errors(location: str | None) -> Iterator[None]:
    """Prefix the message of an error with a location in a file, if there is one and the message has no more precise one."""
    try:
        yield
    except OneshuiError as error:
        if location is None or error.location:
            raise
        raise UsageError(f"{location}: {error}", location=location) from None


def require_known_keys(found: LocatedMapping, known: Sequence[str], where: str, file: YamlFile) -> None:
    """Raise a UsageError for an unknown key, with the nearest known one."""
    for key in found:
        if key not in known:
            raise UsageError(f"{file.locate(found, key)}: {where} has no {describe_value(key)}.{did_you_mean(key, known)}")


def describe_value(value: Any) -> str:
    """Return an invalid value for a message, cut if it is long."""
    if isinstance(value, list | dict):
        return "an empty list" if value == [] else "a list" if isinstance(value, list) else "a mapping"
    text = " ".join(str(value).split())
    return f"'{text}'" if len(text) <= MAX_SHOWN_CHARACTERS else f"'{text[:MAX_SHOWN_CHARACTERS]}...'"
