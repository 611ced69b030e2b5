"""The grid of a benchmark: a YAML file of data sets, requests, seeds and methods, read into cells. Nothing runs here.

    name: mine
    datasets:
      - {dataset: synthetic, epochs: 30, forget: [2, 4]}        # options of `oneshui train`; a `name` for the tables, `forget`, `seeds`
    forget: [5, 10]                                             # for the data sets that do not say
    seeds: [0, 1, 2]
    methods:                                                    # or the word all
      - all                                                     # every installed method that the list does not name itself
      - METHOD
      - {method: METHOD, label: longer, preset: paper, options: {epochs: 3}, when: {dataset: synthetic, forget: 4}}
    evaluate: {references: 1}                                   # options of `oneshui evaluate`

Every mistake is told before anything runs, with the file and the line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_origin

import yaml

from ..data.load import FOLDER
from ..data.split import load_split
from ..errors import OneshuiError, UsageError, did_you_mean
from ..methods.contract import Method
from ..models.load import TINY
from ..options import flag, names, resolve, types_of
from ..plugins import DATASETS, METHODS, Plugins
from ..results.columns import OWN_ROWS
from .options import EvaluateOptions, TrainOptions
from .presets import read_preset

OptionsT = TypeVar("OptionsT")

KEYS = ("name", "datasets", "forget", "seeds", "methods", "evaluate")
METHOD_KEYS = ("method", "label", "preset", "options", "when")
ALL = "all"
PRESET_FILE = ".json"  # by which a preset's file is known from a preset's name
PLACES = ("dataset", "data_dir", "model", "split")  # options of training that may be paths
NOT_IN_TRAINING = {
    "seed": "list seeds under 'seeds'",
    "output_dir": "the benchmark names the folders of its runs",
    "resume": "a benchmark goes on where it was stopped by itself",
    "overwrite": "a benchmark replaces nothing",
}
NOT_IN_EVALUATION = {
    "run": "the benchmark evaluates its own runs",
    "oracle": "the benchmark trains its own oracles",
    "original": "the benchmark trains its own models",
    "cache_dir": "it belongs to the benchmark, as --cache-dir",
    "data_dir": "it belongs to a data set, under 'datasets'",
}

LARGEST_FILE = 1_000_000  # bytes
LARGEST_LABEL = 40  # characters: labels stand in tables
MOST_VALUES, DEEPEST = 20_000, 12  # of the YAML, with all that it repeats
MOST_CELLS = 10_000
PATH = re.compile(r"~|\.|/|.*\\")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One original model and one request.

    Attributes:
        dataset: What the data set is called in tables; never a path.
        train: The recipe, with `forget` and `seed` of this cell and without an output folder.
        forget: How many people ask.
        seed: Seed of split, training and request.
    """

    dataset: str
    train: TrainOptions
    forget: int
    seed: int


@dataclasses.dataclass(frozen=True)
class MethodEntry:
    """One row of a table: a method with its options.

    Attributes:
        label: What the row is called.
        method: The installed method.
        preset: Name of one of the method's presets, or path of a preset's file.
        options: Options of the method that were given, by field and in the options' own types.
        when: `dataset` and `forget` of the cells in which it runs, where it does not run in all.
    """

    label: str
    method: str
    preset: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    when: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def runs_in(self, cell: Cell) -> bool:
        """Whether it runs in a cell."""
        return all(getattr(cell, key) == value for key, value in self.when.items())


@dataclasses.dataclass(frozen=True)
class Grid:
    """What a benchmark runs: every entry in every cell, and how each is evaluated."""

    name: str
    cells: tuple[Cell, ...]
    methods: tuple[MethodEntry, ...]
    evaluate: EvaluateOptions

    def entries(self, cell: Cell) -> list[MethodEntry]:
        """Return what runs in a cell, in the grid's order."""
        return [entry for entry in self.methods if entry.runs_in(cell)]


def shipped() -> list[str]:
    """Return the names of the grids that come with the package."""
    return sorted(file.name.removesuffix(".yaml") for file in _shipped().iterdir() if file.name.endswith(".yaml"))


def read_grid(source: str) -> Grid:
    """Read a grid.

    Args:
        source: The name of a grid that comes with the package, or a YAML file.

    Raises:
        UsageError: There is no such grid, or anything in it is wrong: the sentence names file and line.
    """
    text, file = _open(source)
    grid = _parse(text, file)
    _require_known(grid, KEYS, "a grid", file)
    if "name" not in grid:
        raise UsageError(f"{file.name} has no 'name: NAME' line.")
    name = _label(grid["name"], "name", file.at(grid, "name"))
    if "/" in name:
        raise UsageError(f"{file.at(grid, 'name')}: the grid's name names its folder, so it holds no '/'.")
    cells = _cells(grid, file)
    methods = _methods(grid, cells, file)
    evaluate = _evaluation(grid, file)
    return Grid(name, tuple(cells), tuple(methods), evaluate)


class _Mapping(dict[str, Any]):
    """A mapping of the file, which knows its line and that of each key."""

    line: int
    lines: dict[str, int]


class _List(list[Any]):
    """A list of the file, which knows the line of each item."""

    lines: list[int]


@dataclasses.dataclass(frozen=True)
class _File:
    """The file that is read."""

    name: str
    folder: Path | None  # where relative paths are looked for first

    def at(self, within: _Mapping, key: str | None = None) -> str:
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


def _shipped() -> Any:
    return resources.files(__package__.rpartition(".")[0]) / "grids"


def _open(source: str) -> tuple[str, _File]:
    if source in shipped():
        return (_shipped() / f"{source}.yaml").read_text(encoding="utf-8"), _File(f"grid '{source}'", None)
    path = Path(source).expanduser()
    if not path.is_file():
        raise UsageError(f"'{source}' is neither a file nor a grid that comes with the package.{did_you_mean(source, shipped())}")
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UsageError(f"{source} is larger than 1 MB, so it is no grid.")
        return path.read_text(encoding="utf-8-sig"), _File(source, path.resolve().parent)
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{source} is not YAML: it is no text in UTF-8.") from None


class _Loader(yaml.SafeLoader):
    """Reads plain YAML, with the line of everything."""


def _read_mapping(loader: _Loader, node: yaml.MappingNode) -> _Mapping:
    loader.flatten_mapping(node)
    found = _Mapping((key.value, loader.construct_object(value, deep=True)) for key, value in node.value)
    found.line, found.lines = node.start_mark.line + 1, {key.value: key.start_mark.line + 1 for key, _ in node.value}
    return found


def _read_list(loader: _Loader, node: yaml.SequenceNode) -> _List:
    found = _List(loader.construct_object(item, deep=True) for item in node.value)
    found.lines = [item.start_mark.line + 1 for item in node.value]
    return found


_Loader.add_constructor("tag:yaml.org,2002:map", _read_mapping)
_Loader.add_constructor("tag:yaml.org,2002:seq", _read_list)


def _parse(text: str, file: _File) -> _Mapping:
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


def _cells(grid: _Mapping, file: _File) -> list[Cell]:
    entries = grid.get("datasets")
    if not isinstance(entries, _List) or not entries:
        raise UsageError(f"{file.name} has no list of data sets: 'datasets:' and a line '- dataset: NAME' for each.")
    cells: list[Cell] = []
    for number, entry in enumerate(entries, start=1):
        place = f"{file.name}, line {entries.lines[number - 1]}"
        if not isinstance(entry, _Mapping):
            raise UsageError(f"{place}: a data set is a mapping with 'dataset: NAME' and options of `oneshui train`, not {_short(entry)}.")
        for cell in _dataset_cells(grid, entry, number, file):
            cells.append(cell)
            if len(cells) > MOST_CELLS:
                raise UsageError(f"{place}: the grid has more than {MOST_CELLS:,} cells; leave data sets, requests or seeds out.")
    seen: set[tuple[str, int, int]] = set()
    for cell in cells:
        key = (cell.dataset, cell.forget, cell.seed)
        if key in seen:
            raise UsageError(
                f"{file.name}: data set '{cell.dataset}' with {cell.forget} people and seed {cell.seed} is there twice; "
                "give one of the two data sets another 'name'."
            )
        seen.add(key)
    return cells


def _dataset_cells(grid: _Mapping, entry: _Mapping, number: int, file: _File) -> Iterator[Cell]:
    """Yield the cells of one data set."""
    place, installed = file.at(entry), Plugins(DATASETS).names
    given = {key: value for key, value in entry.items() if key not in ("name", "forget", "seeds")}
    if given.get("dataset") is None:
        raise UsageError(f"{place}: a data set needs a 'dataset: NAME' line.")
    _require_allowed(given, TrainOptions, NOT_IN_TRAINING, entry, file)
    source = str(given["dataset"])
    told = source if source in installed and source != FOLDER else f"data {number}"  # a path may be somebody's name
    name = _label(entry["name"], "name", file.at(entry, "name")) if "name" in entry else told
    words = {"dataset": installed, "model": [TINY]}  # no paths, whatever folder is called so
    for key in PLACES:
        if key in given and given[key] not in words.get(key, ()):
            given[key] = file.path(given[key])
    sizes, seeds = (_whole_numbers(grid, entry, key, option, file) for key, option in (("forget", "forget"), ("seeds", "seed")))
    recipe = _resolve(TrainOptions, given, f"data set '{name}'", place)
    if source not in installed and "/" not in source and not recipe.data_dir and not Path(recipe.dataset).expanduser().exists():
        raise UsageError(f"{file.at(entry, 'dataset')}: '{source}' is neither a data set nor a folder.{did_you_mean(source, installed)}")
    if recipe.split is not None:
        with _told(file.at(entry, "split")):
            asking = len(load_split(Path(recipe.split)).forget)
        if sizes != [asking]:
            raise UsageError(f"{file.at(entry, 'split')}: {asking} people of this split ask; write 'forget: [{asking}]' for '{name}'.")
    for forget in sizes:
        yield from (Cell(name, dataclasses.replace(recipe, forget=forget, seed=seed), forget, seed) for seed in seeds)


def _whole_numbers(grid: _Mapping, entry: _Mapping, key: str, option: str, file: _File) -> list[int]:
    """Return a data set's own list of numbers of people or of seeds, or else the grid's, in the range of a training option."""
    holder = entry if key in entry else grid
    if key not in holder:
        raise UsageError(f"{file.at(entry)}: neither the data set nor the grid has a list '{key}'.")
    place, listed = file.at(holder, key), holder[key]
    if not isinstance(listed, list) or not listed:
        raise UsageError(f"{place}: '{key}' is a list of whole numbers, such as [1, 2], not {_short(listed)}.")
    found: list[int] = []
    for item in listed:
        _require_plain({option: item}, TrainOptions, place)
        found.append(getattr(_resolve(TrainOptions, {"dataset": "-", option: item}, f"'{key}'", place), option))
    if len(set(found)) < len(found):
        raise UsageError(f"{place}: '{key}' holds a number twice.")
    return found


def _methods(grid: _Mapping, cells: Sequence[Cell], file: _File) -> list[MethodEntry]:
    found: Any = grid.get("methods", ALL)
    line = f"{file.name}, line {grid.lines['methods']}" if "methods" in grid else file.name
    items = [found] if found == ALL else found
    if not isinstance(items, list) or not items:
        raise UsageError(f"{line}: 'methods' is the word all or a list of methods, not {_short(found)}.")
    named = {str(item.get("method") if isinstance(item, _Mapping) else item) for item in items}
    entries: list[MethodEntry] = []
    for number, item in enumerate(items):
        place = f"{file.name}, line {items.lines[number]}" if isinstance(items, _List) else line
        if item == ALL:
            added = [MethodEntry(name, name) for name in _reading() if name not in named]
        elif isinstance(item, _Mapping):
            added = [_entry(item, cells, file)]
        elif isinstance(item, str):
            added = [MethodEntry(item, item)]
        else:
            raise UsageError(f"{place}: a method is a name or a mapping with 'method: NAME', not {_short(item)}.")
        entries += [_checked(entry, cells, place) for entry in added]
    _require_distinct(entries, cells, line)
    return entries


def _reading() -> list[str]:
    """Return the installed methods that read anything at all and can be loaded."""
    sound = [row["name"] for row in Plugins(METHODS).rows() if "error" not in row]
    needs = {name: Plugins(METHODS).load(name).needs for name in sound}
    return [name for name in sound if needs[name].prepare or needs[name].apply]


def _entry(item: _Mapping, cells: Sequence[Cell], file: _File) -> MethodEntry:
    """Read a method that is a mapping. Its options are still as they were given."""
    _require_known(item, METHOD_KEYS, "a method", file)
    place, method = file.at(item), item.get("method")
    if not isinstance(method, str):
        raise UsageError(f"{place}: a method needs a 'method: NAME' line.")
    label = _label(item["label"], "label", file.at(item, "label")) if "label" in item else method
    preset, options = item.get("preset"), item.get("options")
    if not isinstance(preset, str | None) or preset == "":
        raise UsageError(f"{file.at(item, 'preset')}: a preset is a name or a file, not {_short(preset)}.")
    if options is not None and not isinstance(options, _Mapping):
        raise UsageError(f"{file.at(item, 'options')}: the options of a method are a mapping, not {_short(options)}.")
    preset = file.path(preset) if preset and preset.endswith(PRESET_FILE) else preset
    return MethodEntry(label, method, preset, dict(options or {}), _when(item, cells, file))


def _when(item: _Mapping, cells: Sequence[Cell], file: _File) -> dict[str, Any]:
    when = item.get("when")
    if when is None:
        return {}
    if not isinstance(when, _Mapping):
        raise UsageError(f"{file.at(item, 'when')}: 'when' is a mapping of dataset and forget, not {_short(when)}.")
    _require_known(when, ("dataset", "forget"), "'when'", file)
    found = {}
    for key, value in when.items():
        there = {str(getattr(cell, key)): getattr(cell, key) for cell in cells}
        if str(value) not in there:
            raise UsageError(f"{file.at(when, key)}: the grid has no cell with {key} {_short(value)}.{did_you_mean(str(value), there)}")
        found[key] = there[str(value)]
    if not any(all(getattr(cell, key) == value for key, value in found.items()) for cell in cells):
        raise UsageError(f"{file.at(when)}: the grid has no cell with both, so the method would never run.")
    return found


def _checked(entry: MethodEntry, cells: Sequence[Cell], place: str) -> MethodEntry:
    """Return an entry with its options in their own types, after trying them, with its preset, in every cell where it runs."""
    if entry.label in OWN_ROWS.values():
        raise UsageError(f"{place}: every table has a row '{entry.label}' already; give the method another label.")
    with _told(place):
        method_class: type[Method[Any]] = Plugins(METHODS).load(entry.method)
    _require_plain(entry.options, method_class.options, place)
    spellings = names(method_class.options)
    values = dict(entry.options)
    for dataset, forget in sorted({(cell.train.dataset, cell.forget) for cell in cells if entry.runs_in(cell)}):
        with _told(place):
            preset = _preset(entry, method_class, dataset, forget)
            resolved = method_class.prepare_options(entry.method, preset, entry.options)
        given = (spellings[key.lstrip("-").replace("-", "_")] for key in entry.options)
        values = {field: getattr(resolved, field) for field in given}
    return dataclasses.replace(entry, options=values)


def _preset(entry: MethodEntry, method_class: type[Method[Any]], dataset: str, forget: int) -> dict[str, Any]:
    if entry.preset is None:
        return {}
    if not entry.preset.endswith(PRESET_FILE):
        return method_class.preset(entry.preset, dataset, forget)
    found = read_preset(Path(entry.preset), entry.method, method_class)
    if found["scores"] is None:
        raise UsageError(f"No setting in {entry.preset} has worked, so there is none to take.")
    return dict(found["values"])


def _require_distinct(entries: Sequence[MethodEntry], cells: Sequence[Cell], place: str) -> None:
    groups = {(cell.dataset, cell.forget): cell for cell in cells}
    for cell in groups.values():
        labels = [entry.label for entry in entries if entry.runs_in(cell)]
        for label in labels:
            if labels.count(label) > 1:
                raise UsageError(
                    f"{place}: two methods are called '{label}' for data set '{cell.dataset}' with {cell.forget} people; give one a label."
                )


def _evaluation(grid: _Mapping, file: _File) -> EvaluateOptions:
    found = grid.get("evaluate")
    if found is None:
        return EvaluateOptions()
    if not isinstance(found, _Mapping):
        raise UsageError(f"{file.at(grid, 'evaluate')}: 'evaluate' is a mapping of options of `oneshui evaluate`, not {_short(found)}.")
    _require_allowed(found, EvaluateOptions, NOT_IN_EVALUATION, found, file)
    return _resolve(EvaluateOptions, found, "'evaluate'", file.at(found))


def _resolve(options: type[OptionsT], values: Mapping[str, Any], where: str, place: str) -> OptionsT:
    _require_plain(values, options, place)
    with _told(place):
        return resolve(options, values, where)


@contextlib.contextmanager
def _told(place: str) -> Iterator[None]:
    """Say where in the grid something is wrong."""
    try:
        yield
    except OneshuiError as error:
        raise UsageError(f"{place}: {error}") from None


def _require_known(found: _Mapping, known: Sequence[str], where: str, file: _File) -> None:
    for key in found:
        if key not in known:
            raise UsageError(f"{file.at(found, key)}: {where} has no {_short(key)}.{did_you_mean(key, known)}")


def _require_allowed(given: Mapping[str, Any], options: type[Any], refused: Mapping[str, str], within: _Mapping, file: _File) -> None:
    """Refuse options that are no business of a grid."""
    spellings = names(options)
    for key in given:
        field = spellings.get(key.lstrip("-").replace("-", "_"), "")
        if field in refused:
            raise UsageError(f"{file.at(within, key)}: {flag(field)} does not go here: {refused[field]}.")


def _require_plain(values: Mapping[str, Any], options: type[Any], place: str) -> None:
    """Refuse lists and mappings where an option takes one value; texts would be made of them."""
    types, spellings = types_of(options), names(options)
    for key, value in values.items():
        field = spellings.get(key.lstrip("-").replace("-", "_"))
        items = value if isinstance(value, list) and field and get_origin(types[field]) in (tuple, list) else [value]
        if any(isinstance(item, list | dict | set | bytes) for item in items):
            raise UsageError(f"{place}: {flag(key)} takes one value, not {_short(value)}.")


def _label(value: Any, what: str, place: str) -> str:
    """Return a name that may stand in a table."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UsageError(f"{place}: a {what} is a text; write it in quotes.")
    text = str(value).strip()
    if not text or len(text) > LARGEST_LABEL or not text.isprintable() or "|" in text:
        raise UsageError(f"{place}: a {what} has 1 to {LARGEST_LABEL} characters, all of which can be printed and none of which is '|'.")
    if PATH.match(text):
        raise UsageError(f"{place}: a {what} stands in tables for others to read, and '{text}' looks like a path; write a word.")
    return text


def _short(value: Any) -> str:
    """Return a wrong value for a message, cut where it is long."""
    if isinstance(value, list | dict):
        return "an empty list" if value == [] else "a list" if isinstance(value, list) else "a mapping"
    text = " ".join(str(value).split())
    return f"'{text}'" if len(text) <= LARGEST_LABEL else f"'{text[:LARGEST_LABEL]}...'"
