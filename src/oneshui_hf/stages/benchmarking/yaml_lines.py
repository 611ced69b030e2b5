"""A grid's file: YAML that knows its lines, read within bounds, and sentences that say where in it something is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ...errors import OneshuiError, UsageError, did_you_mean

LARGEST_FILE = 1_000_000  # bytes
LARGEST_VALUE = 40  # characters of a wrong value that are shown
MOST_VALUES, DEEPEST = 20_000, 12  # of the YAML, with all that it repeats


class GridMapping(dict[str, Any]):
    """A mapping of the file, which knows its line and that of each key."""

    line: int
    lines: dict[str, int]


class GridList(list[Any]):
    """A list of the file, which knows the line of each item."""

    lines: list[int]


@dataclasses.dataclass(frozen=True)
class GridFile:
    """The file that is read."""

    name: str
    folder: Path | None  # where relative paths are looked for first

    def at(self, within: GridMapping, key: str | None = None) -> str:
        """Return the place of a mapping, or of one of its keys, for messages."""
        return f"{self.name}, line {within.line if key is None else within.lines[key]}"

    def path(self, value: Any) -> Any:
        """Return a path from the file's folder where something is there, and the value as it is elsewhere."""
        if not isinstance(value, str) or not value or self.folder is None:
            return value
        with contextlib.suppress(OSError, ValueError):  # no path at all
            found = self.folder / Path(value).expanduser()
            return str(found) if found.exists() else value
        return value


def shipped() -> list[str]:
    """Return the names of the grids that come with the package."""
    return sorted(file.name.removesuffix(".yaml") for file in _shipped().iterdir() if file.name.endswith(".yaml"))


def _shipped() -> Any:
    return resources.files(__package__.partition(".")[0]) / "grids"


def open_grid(source: str) -> tuple[str, GridFile]:
    """Return the text of a grid that comes with the package, or of a file.

    Raises:
        UsageError: There is none, or it is no text of a grid's size.
    """
    if source in shipped():
        return (_shipped() / f"{source}.yaml").read_text(encoding="utf-8"), GridFile(f"grid '{source}'", None)
    path = Path(source).expanduser()
    if not path.is_file():
        raise UsageError(f"'{source}' is neither a file nor a grid that comes with the package.{did_you_mean(source, shipped())}")
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UsageError(f"{source} is larger than 1 MB, so it is no grid.")
        return path.read_text(encoding="utf-8-sig"), GridFile(source, path.resolve().parent)
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{source} is not YAML: it is no text in UTF-8.") from None


class _Loader(yaml.SafeLoader):
    """Reads plain YAML, with the line of everything."""


def _read_mapping(loader: _Loader, node: yaml.MappingNode) -> GridMapping:
    loader.flatten_mapping(node)
    found = GridMapping((key.value, loader.construct_object(value, deep=True)) for key, value in node.value)
    found.line, found.lines = node.start_mark.line + 1, {key.value: key.start_mark.line + 1 for key, _ in node.value}
    return found


def _read_list(loader: _Loader, node: yaml.SequenceNode) -> GridList:
    found = GridList(loader.construct_object(item, deep=True) for item in node.value)
    found.lines = [item.start_mark.line + 1 for item in node.value]
    return found


_Loader.add_constructor("tag:yaml.org,2002:map", _read_mapping)
_Loader.add_constructor("tag:yaml.org,2002:seq", _read_list)


def parse(text: str, file: GridFile) -> GridMapping:
    """Return the mapping that a YAML text holds.

    Raises:
        UsageError: It is no YAML, no mapping, or larger than any grid.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise UsageError(f"{file.name} must hold 'name: value' lines; see the grids that come with the package.")
        values, depth = _measure(node, {})
        if values > MOST_VALUES or depth > DEEPEST:
            raise RecursionError
        return loader.construct_document(node)
    except RecursionError:
        raise UsageError(f"{file.name} is nested too deeply or repeats itself too often to be a grid.") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{file.name}{line}, is not YAML that can be read: {error.problem}.") from None
    except (yaml.YAMLError, ValueError) as error:  # a date that is none, say
        raise UsageError(f"{file.name} is not YAML that can be read: {' '.join(str(error).split())}.") from None
    finally:
        if loader is not None:
            loader.dispose()


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return how many values a node holds, and how deep they lie, once its aliases are written out.

    Raises:
        yaml.MarkedYAMLError: A key is no word, or is given twice, of which YAML would silently take the last.
    """
    if id(node) not in known:
        known[id(node)] = (MOST_VALUES + 1, 0)  # met again from within, it holds itself
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                    wrong = f"'{key.value}' is given twice" if isinstance(key, yaml.ScalarNode) else "a key is no word"
                    raise yaml.MarkedYAMLError(problem=wrong, problem_mark=key.start_mark)
                seen.add(key.value)
            children = [value for _, value in node.value]
        else:
            children = node.value if isinstance(node, yaml.SequenceNode) else []
        inner = [_measure(child, known) for child in children]
        known[id(node)] = (1 + sum(count for count, _ in inner), 1 + max((depth for _, depth in inner), default=0))
    return known[id(node)]


@contextlib.contextmanager
def told(place: str) -> Iterator[None]:
    """Say where in the grid something is wrong."""
    try:
        yield
    except OneshuiError as error:
        raise UsageError(f"{place}: {error}") from None


def require_known(found: GridMapping, known: Sequence[str], where: str, file: GridFile) -> None:
    """Refuse a key that means nothing, and name the nearest that does."""
    for key in found:
        if key not in known:
            raise UsageError(f"{file.at(found, key)}: {where} has no {short(key)}.{did_you_mean(key, known)}")


def short(value: Any) -> str:
    """Return a wrong value for a message, cut where it is long."""
    if isinstance(value, list | dict):
        return "an empty list" if value == [] else "a list" if isinstance(value, list) else "a mapping"
    text = " ".join(str(value).split())
    return f"'{text}'" if len(text) <= LARGEST_VALUE else f"'{text[:LARGEST_VALUE]}...'"
