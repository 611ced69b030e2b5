"""The file of a grid: YAML with line numbers, read within size limits, and error messages that name the line."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ...errors import OneshuiError, UsageError, did_you_mean

MAX_FILE_BYTES = 1_000_000  # bytes
MAX_SHOWN_CHARACTERS = 40  # of an invalid value in a message
MAX_VALUES, MAX_DEPTH = 20_000, 12  # of the YAML, with its aliases expanded


class LocatedMapping(dict[str, Any]):
    """A mapping of the file, with its line and the line of each key."""

    line: int
    lines: dict[str, int]


class LocatedList(list[Any]):
    """A list of the file, with the line of each item."""

    lines: list[int]


@dataclasses.dataclass(frozen=True)
class GridFile:
    """The file of a grid.

    Attributes:
        name: Its name in messages.
        folder: The folder that relative paths start from; None for a built-in grid.
    """

    name: str
    folder: Path | None

    def locate(self, within: LocatedMapping, key: str | None = None) -> str:
        """Return the location of a mapping, or of one of its keys, for messages."""
        return f"{self.name}, line {within.line if key is None else within.lines[key]}"

    def resolve_path(self, value: Any) -> Any:
        """Return the path relative to the file's folder if it exists, otherwise the value unchanged."""
        if not isinstance(value, str) or not value or self.folder is None:
            return value
        with contextlib.suppress(OSError, ValueError):  # not a path
            found = self.folder / Path(value).expanduser()
            return str(found) if found.exists() else value
        return value


def builtin_grids() -> list[str]:
    """Return the names of the built-in grids."""
    return sorted(file.name.removesuffix(".yaml") for file in _grids_folder().iterdir() if file.name.endswith(".yaml"))


def _grids_folder() -> Any:
    return resources.files(__package__.partition(".")[0]) / "grids"


def open_grid(source: str) -> tuple[str, GridFile]:
    """Return the text of a built-in grid or of a file, and the file.

    Raises:
        UsageError: The grid does not exist, is too large, or is not text.
    """
    if source in builtin_grids():
        return (_grids_folder() / f"{source}.yaml").read_text(encoding="utf-8"), GridFile(f"grid '{source}'", None)
    path = Path(source).expanduser()
    if not path.is_file():
        raise UsageError(f"'{source}' is neither a file nor a built-in grid.{did_you_mean(source, builtin_grids())}")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"{source} is larger than 1 MB, so it is not a grid.")
        return path.read_text(encoding="utf-8-sig"), GridFile(source, path.resolve().parent)
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{source} is not YAML: it is not UTF-8 text.") from None


class _Loader(yaml.SafeLoader):
    """Reads plain YAML, with line numbers."""


def _read_mapping(loader: _Loader, node: yaml.MappingNode) -> LocatedMapping:
    loader.flatten_mapping(node)
    found = LocatedMapping((key.value, loader.construct_object(value, deep=True)) for key, value in node.value)
    found.line, found.lines = node.start_mark.line + 1, {key.value: key.start_mark.line + 1 for key, _ in node.value}
    return found


def _read_list(loader: _Loader, node: yaml.SequenceNode) -> LocatedList:
    found = LocatedList(loader.construct_object(item, deep=True) for item in node.value)
    found.lines = [item.start_mark.line + 1 for item in node.value]
    return found


_Loader.add_constructor("tag:yaml.org,2002:map", _read_mapping)
_Loader.add_constructor("tag:yaml.org,2002:seq", _read_list)


def parse_grid(text: str, file: GridFile) -> LocatedMapping:
    """Return the mapping in a YAML text.

    Raises:
        UsageError: The text is not YAML, not a mapping, or larger than any grid.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise UsageError(f"{file.name} must consist of 'name: value' lines; see the built-in grids.")
        values, depth = _count_values(node, {})
        if values > MAX_VALUES or depth > MAX_DEPTH:
            raise RecursionError
        return loader.construct_document(node)
    except RecursionError:
        raise UsageError(f"{file.name} is nested too deeply or repeats itself too often to be a grid.") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{file.name}{line}, is not readable YAML: {error.problem}.") from None
    except (yaml.YAMLError, ValueError) as error:  # for example, an invalid date
        raise UsageError(f"{file.name} is not readable YAML: {' '.join(str(error).split())}.") from None
    finally:
        if loader is not None:
            loader.dispose()


def _count_values(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return the number of values in a node and their depth, with aliases expanded.

    Raises:
        yaml.MarkedYAMLError: A key is not a word, or is given twice; YAML would silently use the last value.
    """
    if id(node) not in known:
        known[id(node)] = (MAX_VALUES + 1, 0)  # seen again before its count is known, the node contains itself
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                    wrong = f"'{key.value}' is given twice" if isinstance(key, yaml.ScalarNode) else "a key is not a word"
                    raise yaml.MarkedYAMLError(problem=wrong, problem_mark=key.start_mark)
                seen.add(key.value)
            children = [value for _, value in node.value]
        else:
            children = node.value if isinstance(node, yaml.SequenceNode) else []
        inner = [_count_values(child, known) for child in children]
        known[id(node)] = (1 + sum(count for count, _ in inner), 1 + max((depth for _, depth in inner), default=0))
    return known[id(node)]


@contextlib.contextmanager
def prefix_errors(location: str) -> Iterator[None]:
    """Prefix the message of an error with a location in the grid."""
    try:
        yield
    except OneshuiError as error:
        raise UsageError(f"{location}: {error}") from None


def require_known_keys(found: LocatedMapping, known: Sequence[str], where: str, file: GridFile) -> None:
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
