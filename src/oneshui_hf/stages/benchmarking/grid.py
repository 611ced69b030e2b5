"""The grid of a benchmark: a YAML file of data sets, requests, seeds and methods, read into cells. Nothing runs here.

    name: mine
    datasets:
      - {dataset: synthetic, epochs: 30, forget: [2, 4]}        # options of `oneshui train`; a `name` for the tables, `forget`, `seeds`
    forget: [5, 10]                                             # for the data sets that do not say
    seeds: [0, 1, 2]
    methods:                                                    # or the word all
      - all                                                     # every installed method that fits and that the list does not name itself
      - METHOD
      - {method: METHOD, label: longer, preset: paper, options: {epochs: 3}, when: {dataset: synthetic, forget: 4}}
    evaluate: {references: 1}                                   # options of `oneshui evaluate`

Every mistake is told before anything runs, with the file and the line.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin

from ...data.load import FOLDER
from ...data.split import load_split
from ...errors import UsageError, did_you_mean
from ...methods.base import Method
from ...models.load import TINY
from ...options import field_name, flag, names, resolve, types_of
from ...plugins import DATASETS, METHODS, Plugins
from ...results.table_columns import OWN_ROWS
from ..command_options import EvaluateOptions, TrainOptions
from ..presets import read_preset
from .yaml_lines import GridFile, GridList, GridMapping, open_grid, parse, require_known, short, told

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

LARGEST_LABEL = 40  # characters: labels stand in tables
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


def read_grid(source: str) -> Grid:
    """Read a grid.

    Args:
        source: The name of a grid that comes with the package, or a YAML file.

    Raises:
        UsageError: There is no such grid, or anything in it is wrong: the sentence names file and line.
    """
    text, file = open_grid(source)
    grid = parse(text, file)
    require_known(grid, KEYS, "a grid", file)
    if "name" not in grid:
        raise UsageError(f"{file.name} has no 'name: NAME' line.")
    name = _label(grid["name"], "name", file.at(grid, "name"))
    if "/" in name:
        raise UsageError(f"{file.at(grid, 'name')}: the grid's name names its folder, so it holds no '/'.")
    cells = _cells(grid, file)
    methods = _methods(grid, cells, file)
    evaluate = _evaluation(grid, file)
    return Grid(name, tuple(cells), tuple(methods), evaluate)


def _cells(grid: GridMapping, file: GridFile) -> list[Cell]:
    entries = grid.get("datasets")
    if not isinstance(entries, GridList) or not entries:
        raise UsageError(f"{file.name} has no list of data sets: 'datasets:' and a line '- dataset: NAME' for each.")
    cells: list[Cell] = []
    for number, entry in enumerate(entries, start=1):
        place = f"{file.name}, line {entries.lines[number - 1]}"
        if not isinstance(entry, GridMapping):
            raise UsageError(f"{place}: a data set is a mapping with 'dataset: NAME' and options of `oneshui train`, not {short(entry)}.")
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


def _dataset_cells(grid: GridMapping, entry: GridMapping, number: int, file: GridFile) -> Iterator[Cell]:
    """Yield the cells of one data set."""
    place, installed = file.at(entry), Plugins(DATASETS).names
    given = {key: value for key, value in entry.items() if key not in ("name", "forget", "seeds")}
    if given.get("dataset") is None:
        raise UsageError(f"{place}: a data set needs a 'dataset: NAME' line.")
    _require_allowed(given, TrainOptions, NOT_IN_TRAINING, entry, file)
    source = str(given["dataset"])
    usual = source if source in installed and source != FOLDER else f"data {number}"  # a path may be somebody's name
    name = _label(entry["name"], "name", file.at(entry, "name")) if "name" in entry else usual
    words = {"dataset": installed, "model": [TINY]}  # no paths, whatever folder is called so
    for key in PLACES:
        if key in given and given[key] not in words.get(key, ()):
            given[key] = file.path(given[key])
    sizes, seeds = (_whole_numbers(grid, entry, key, option, file) for key, option in (("forget", "forget"), ("seeds", "seed")))
    recipe = _resolve(TrainOptions, given, f"data set '{name}'", place)
    if source not in installed and "/" not in source and not recipe.data_dir and not Path(recipe.dataset).expanduser().exists():
        raise UsageError(f"{file.at(entry, 'dataset')}: '{source}' is neither a data set nor a folder.{did_you_mean(source, installed)}")
    if recipe.split is not None:
        with told(file.at(entry, "split")):
            asking = len(load_split(Path(recipe.split)).forget)
        if sizes != [asking]:
            raise UsageError(f"{file.at(entry, 'split')}: {asking} people of this split ask; write 'forget: [{asking}]' for '{name}'.")
    for forget in sizes:
        yield from (Cell(name, dataclasses.replace(recipe, forget=forget, seed=seed), forget, seed) for seed in seeds)


def _whole_numbers(grid: GridMapping, entry: GridMapping, key: str, option: str, file: GridFile) -> list[int]:
    """Return a data set's own list of numbers of people or of seeds, or else the grid's, in the range of a training option."""
    holder = entry if key in entry else grid
    if key not in holder:
        raise UsageError(f"{file.at(entry)}: neither the data set nor the grid has a list '{key}'.")
    place, listed = file.at(holder, key), holder[key]
    if not isinstance(listed, list) or not listed:
        raise UsageError(f"{place}: '{key}' is a list of whole numbers, such as [1, 2], not {short(listed)}.")
    found: list[int] = []
    for item in listed:
        _require_plain({option: item}, TrainOptions, place)
        found.append(getattr(_resolve(TrainOptions, {"dataset": "-", option: item}, f"'{key}'", place), option))
    if len(set(found)) < len(found):
        raise UsageError(f"{place}: '{key}' holds a number twice.")
    return found


def _methods(grid: GridMapping, cells: Sequence[Cell], file: GridFile) -> list[MethodEntry]:
    found: Any = grid.get("methods", ALL)
    line = f"{file.name}, line {grid.lines['methods']}" if "methods" in grid else file.name
    items = [found] if found == ALL else found
    if not isinstance(items, list) or not items:
        raise UsageError(f"{line}: 'methods' is the word all or a list of methods, not {short(found)}.")
    named = {str(item.get("method") if isinstance(item, GridMapping) else item) for item in items}
    entries: list[MethodEntry] = []
    for number, item in enumerate(items):
        place = f"{file.name}, line {items.lines[number]}" if isinstance(items, GridList) else line
        if item == ALL:
            added = [MethodEntry(name, name) for name in _reading(cells) if name not in named]
        elif isinstance(item, GridMapping):
            added = [_entry(item, cells, file)]
        elif isinstance(item, str):
            added = [MethodEntry(item, item)]
        else:
            raise UsageError(f"{place}: a method is a name or a mapping with 'method: NAME', not {short(item)}.")
        entries += [_checked(entry, cells, place) for entry in added]
    _require_distinct(entries, cells, line)
    return entries


def _reading(cells: Sequence[Cell]) -> list[str]:
    """Return the installed methods that read anything at all, can be loaded, and take the models of all cells."""
    sound = [row["name"] for row in Plugins(METHODS).rows() if "error" not in row]
    found: dict[str, type[Method[Any]]] = {name: Plugins(METHODS).load(name) for name in sound}
    in_shards = all(cell.train.sharded for cell in cells)
    reading = [name for name, method in found.items() if method.needs.prepare or method.needs.apply]
    return [name for name in reading if in_shards or not found[name].sharded]


def _entry(item: GridMapping, cells: Sequence[Cell], file: GridFile) -> MethodEntry:
    """Read a method that is a mapping. Its options are still as they were given."""
    require_known(item, METHOD_KEYS, "a method", file)
    place, method = file.at(item), item.get("method")
    if not isinstance(method, str):
        raise UsageError(f"{place}: a method needs a 'method: NAME' line.")
    label = _label(item["label"], "label", file.at(item, "label")) if "label" in item else method
    preset, options = item.get("preset"), item.get("options")
    if not isinstance(preset, str | None) or preset == "":
        raise UsageError(f"{file.at(item, 'preset')}: a preset is a name or a file, not {short(preset)}.")
    if options is not None and not isinstance(options, GridMapping):
        raise UsageError(f"{file.at(item, 'options')}: the options of a method are a mapping, not {short(options)}.")
    preset = file.path(preset) if preset and preset.endswith(PRESET_FILE) else preset
    return MethodEntry(label, method, preset, dict(options or {}), _when(item, cells, file))


def _when(item: GridMapping, cells: Sequence[Cell], file: GridFile) -> dict[str, Any]:
    when = item.get("when")
    if when is None:
        return {}
    if not isinstance(when, GridMapping):
        raise UsageError(f"{file.at(item, 'when')}: 'when' is a mapping of dataset and forget, not {short(when)}.")
    require_known(when, ("dataset", "forget"), "'when'", file)
    found = {}
    for key, value in when.items():
        there = {str(getattr(cell, key)): getattr(cell, key) for cell in cells}
        if str(value) not in there:
            raise UsageError(f"{file.at(when, key)}: the grid has no cell with {key} {short(value)}.{did_you_mean(str(value), there)}")
        found[key] = there[str(value)]
    if not any(all(getattr(cell, key) == value for key, value in found.items()) for cell in cells):
        raise UsageError(f"{file.at(when)}: the grid has no cell with both, so the method would never run.")
    return found


def _checked(entry: MethodEntry, cells: Sequence[Cell], place: str) -> MethodEntry:
    """Return an entry with its options in their own types, after trying them, with its preset, in every cell where it runs."""
    if entry.label in OWN_ROWS.values():
        raise UsageError(f"{place}: every table has a row '{entry.label}' already; give the method another label.")
    with told(place):
        method_class: type[Method[Any]] = Plugins(METHODS).load(entry.method)
    _require_plain(entry.options, method_class.options, place)
    spellings = names(method_class.options)
    values = dict(entry.options)
    for dataset, forget in sorted({(cell.train.dataset, cell.forget) for cell in cells if entry.runs_in(cell)}):
        with told(place):
            preset = _preset(entry, method_class, dataset, forget)
            resolved = method_class.prepare_options(entry.method, preset, entry.options)
        given = (spellings[field_name(key)] for key in entry.options)
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


def _evaluation(grid: GridMapping, file: GridFile) -> EvaluateOptions:
    found = grid.get("evaluate")
    if found is None:
        return EvaluateOptions()
    if not isinstance(found, GridMapping):
        raise UsageError(f"{file.at(grid, 'evaluate')}: 'evaluate' is a mapping of options of `oneshui evaluate`, not {short(found)}.")
    _require_allowed(found, EvaluateOptions, NOT_IN_EVALUATION, found, file)
    return _resolve(EvaluateOptions, found, "'evaluate'", file.at(found))


def _resolve(options: type[OptionsT], values: Mapping[str, Any], where: str, place: str) -> OptionsT:
    _require_plain(values, options, place)
    with told(place):
        return resolve(options, values, where)


def _require_allowed(given: Mapping[str, Any], options: type[Any], refused: Mapping[str, str], within: GridMapping, file: GridFile) -> None:
    """Refuse options that are no business of a grid."""
    spellings = names(options)
    for key in given:
        field = spellings.get(field_name(key), "")
        if field in refused:
            raise UsageError(f"{file.at(within, key)}: {flag(field)} does not go here: {refused[field]}.")


def _require_plain(values: Mapping[str, Any], options: type[Any], place: str) -> None:
    """Refuse lists and mappings where an option takes one value; texts would be made of them."""
    types, spellings = types_of(options), names(options)
    for key, value in values.items():
        field = spellings.get(field_name(key))
        items = value if isinstance(value, list) and field and get_origin(types[field]) in (tuple, list) else [value]
        if any(isinstance(item, list | dict | set | bytes) for item in items):
            raise UsageError(f"{place}: {flag(key)} takes one value, not {short(value)}.")


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
