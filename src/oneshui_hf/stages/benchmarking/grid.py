"""The grid of a benchmark: a YAML file of data sets, request sizes, seeds and methods, read into cells. Nothing runs here.

    name: mine
    datasets:
      - {dataset: synthetic, epochs: 30, forget: [2, 4]}        # options of `oneshui train`; a `name` for the tables, `forget`, `seeds`
    forget: [5, 10]                                             # for data sets without their own list
    seeds: [0, 1, 2]
    methods:                                                    # or the word all
      - all                                                     # every suitable installed method that the list does not name
      - METHOD
      - {method: METHOD, label: longer, preset: paper, options: {epochs: 3}, when: {dataset: synthetic, forget: 4}}
    evaluate: {references: 1}                                   # options of `oneshui evaluate`

Every error is reported before anything runs, with the file and the line.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ...data.load import FOLDER
from ...data.split import load_split
from ...errors import UsageError, did_you_mean
from ...methods.base import Method
from ...option_values import expand_home
from ...options import field_name, flag, names, require_one_spelling, resolve
from ...plugins import DATASETS, METHODS, Plugins
from ...public_names import TINY
from ...results.table_columns import BUILTIN_ROWS
from ...yaml_lines import LocatedList, LocatedMapping, describe_value, is_null, prefix_errors, require_known_keys
from ..command_options import EvaluateOptions, TrainOptions
from ..presets import is_preset_file, resolve_preset
from ..training.recipe import CLOSED_FORM, require_consistent_recipe
from .grid_file import GridFile, read_grid_file

OptionsT = TypeVar("OptionsT")

KEYS = ("name", "datasets", "forget", "seeds", "methods", "evaluate")
METHOD_KEYS = ("method", "label", "preset", "options", "when")
ALL = "all"
PATH_OPTIONS = ("dataset", "data_dir", "model", "split")  # options of training that may be paths
NOT_IN_TRAINING = {
    "seed": "list seeds under 'seeds'",
    "output_dir": "the benchmark names the folders of its runs",
    "resume": "the same command resumes a benchmark",
    "overwrite": "a benchmark replaces nothing",
    "download": "name the copy on the Hub as the data set",
    "push_to_hub": "publish a run with `oneshui push`",
    "report_to": "it is an option of `oneshui benchmark`",
}
NOT_IN_EVALUATION = {
    "run": "the benchmark evaluates its own runs",
    "oracle": "the benchmark trains its own oracles",
    "original": "the benchmark trains its own models",
    "cache_dir": "it belongs to the benchmark, as --cache-dir",
    "data_dir": "it belongs to a data set, under 'datasets'",
}

MAX_LABEL_CHARACTERS = 40  # labels have to fit into tables
MAX_CELLS = 10_000
PATH_LIKE = re.compile(r"~|\.|/|.*\\")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One original model and one request.

    Attributes:
        dataset: The name of the data set in tables; never a path.
        train: The recipe, with `forget` and `seed` of this cell and without an output folder.
        forget: Number of forget identities.
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
        label: The name of the row.
        method: The installed method.
        preset: Name of one of the method's presets, or path of a preset file.
        options: The given options of the method, by field name and with the types of the fields.
        when: `dataset` and `forget` of the cells in which it runs; empty for all cells.
    """

    label: str
    method: str
    preset: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    when: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def runs_in(self, cell: Cell) -> bool:
        """Return whether it runs in a cell."""
        return all(getattr(cell, key) == value for key, value in self.when.items())


@dataclasses.dataclass(frozen=True)
class Grid:
    """The plan of a benchmark: every method in every cell, and the options of the evaluation."""

    name: str
    cells: tuple[Cell, ...]
    methods: tuple[MethodEntry, ...]
    evaluate: EvaluateOptions

    def entries(self, cell: Cell) -> list[MethodEntry]:
        """Return the methods that run in a cell, in the grid's order."""
        return [entry for entry in self.methods if entry.runs_in(cell)]


def read_grid(source: str) -> Grid:
    """Read a grid.

    Args:
        source: The name of a built-in grid, or a YAML file.

    Raises:
        UsageError: The grid does not exist or is invalid; the message names file and line.
    """
    grid, file = read_grid_file(source)
    require_known_keys(grid, KEYS, "a grid", file)
    if "name" not in grid:
        raise UsageError(f"{file.name} has no 'name: NAME' line.")
    name = _read_label(grid["name"], "name", file.locate(grid, "name"))
    if "/" in name:
        raise UsageError(f"{file.locate(grid, 'name')}: the grid's name is the name of its folder, so it cannot contain '/'.")
    cells = _read_cells(grid, file)
    methods = _read_methods(grid, cells, file)
    evaluate = _read_evaluation(grid, file)
    return Grid(name, tuple(cells), tuple(methods), evaluate)


def _read_cells(grid: LocatedMapping, file: GridFile) -> list[Cell]:
    entries = _as_list(grid.get("datasets"))
    if not entries:
        raise UsageError(f"{file.name} has no list of data sets: 'datasets:' and a line '- dataset: NAME' for each.")
    cells: list[Cell] = []
    for number, entry in enumerate(entries, start=1):
        location = _location(grid, "datasets", number - 1, file)
        if not isinstance(entry, LocatedMapping):
            raise UsageError(
                f"{location}: a data set is a mapping with 'dataset: NAME' and options of `oneshui train`, not {describe_value(entry)}."
            )
        for cell in _read_dataset(grid, entry, number, file):
            cells.append(cell)
            if len(cells) > MAX_CELLS:
                raise UsageError(f"{location}: the grid has more than {MAX_CELLS:,} cells; leave data sets, requests or seeds out.")
    seen: set[tuple[str, int, int]] = set()
    for cell in cells:
        key = (cell.dataset, cell.forget, cell.seed)
        if key in seen:
            raise UsageError(
                f"{file.name}: data set '{cell.dataset}' with {cell.forget} forget identities and seed {cell.seed} occurs twice; "
                "give one of the two data sets another 'name'."
            )
        seen.add(key)
    return cells


def _as_list(value: Any) -> list[Any]:
    """Return a list; one value is a list of one, and no value an empty list."""
    return value if isinstance(value, list) else [] if is_null(value) else [value]


def _location(grid: LocatedMapping, key: str, number: int, file: GridFile) -> str:
    """Return the location of an item of a list, for messages."""
    found = grid[key]
    return f"{file.name}, line {found.lines[number] if isinstance(found, LocatedList) else grid.lines[key]}"


def _read_dataset(grid: LocatedMapping, entry: LocatedMapping, number: int, file: GridFile) -> Iterator[Cell]:
    """Yield the cells of one data set."""
    location, installed = file.locate(entry), Plugins(DATASETS).names
    given = {key: value for key, value in entry.items() if key not in ("name", "forget", "seeds")}
    if is_null(given.get("dataset")):
        raise UsageError(f"{location}: a data set needs a 'dataset: NAME' line.")
    _require_allowed(given, TrainOptions, NOT_IN_TRAINING, entry, file)
    source = str(given["dataset"])
    default_name = source if source in installed and source != FOLDER else f"data {number}"  # a path may contain a person's name
    name = _read_label(entry["name"], "name", file.locate(entry, "name")) if "name" in entry else default_name
    known_words = {"dataset": installed, "model": [TINY]}  # never paths, even if a folder has the same name
    for key, value in given.items():
        if field_name(key) in PATH_OPTIONS and value not in known_words.get(field_name(key), ()):
            given[key] = file.resolve_path(value)
    sizes, seeds = (_read_integers(grid, entry, key, option, file) for key, option in (("forget", "forget"), ("seeds", "seed")))
    recipe = _resolve(TrainOptions, given, f"data set '{name}'", location)
    with prefix_errors(location):
        require_consistent_recipe(recipe)
    if source not in installed and "/" not in source and not recipe.data_dir and not Path(recipe.dataset).exists():
        raise UsageError(
            f"{file.locate(entry, 'dataset')}: '{source}' is neither a data set nor a folder.{did_you_mean(source, installed)}"
        )
    if recipe.split is not None:
        with prefix_errors(file.locate(entry, "split")):
            size = len(load_split(Path(recipe.split)).forget)
        if sizes != [size]:
            raise UsageError(
                f"{file.locate(entry, 'split')}: the forget set of this split has {size} identities; write 'forget: [{size}]' for '{name}'."
            )
    for forget in sizes:
        yield from (Cell(name, dataclasses.replace(recipe, forget=forget, seed=seed), forget, seed) for seed in seeds)


def _read_integers(grid: LocatedMapping, entry: LocatedMapping, key: str, option: str, file: GridFile) -> list[int]:
    """Return a data set's list of request sizes or seeds, or else the grid's, checked as values of a training option."""
    owner = entry if key in entry else grid
    if key not in owner:
        raise UsageError(f"{file.locate(entry)}: neither the data set nor the grid has a list '{key}'.")
    location, items = file.locate(owner, key), _as_list(owner[key])
    if not items or isinstance(items[0], LocatedMapping):
        raise UsageError(f"{location}: '{key}' is a list of whole numbers, such as [1, 2], not {describe_value(owner[key])}.")
    numbers: list[int] = []
    for item in items:
        numbers.append(getattr(_resolve(TrainOptions, {"dataset": "-", option: item}, f"'{key}'", location), option))
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"{location}: '{key}' contains a number twice.")
    return numbers


def _read_methods(grid: LocatedMapping, cells: Sequence[Cell], file: GridFile) -> list[MethodEntry]:
    found: Any = grid.get("methods", ALL)
    line = f"{file.name}, line {grid.lines['methods']}" if "methods" in grid else file.name
    items = _as_list(found)
    if not items:
        raise UsageError(f"{line}: 'methods' is the word all or a list of methods, not {describe_value(found)}.")
    named = {str(item.get("method") if isinstance(item, LocatedMapping) else item) for item in items}
    entries: list[MethodEntry] = []
    for number, item in enumerate(items):
        location = _location(grid, "methods", number, file) if "methods" in grid else line
        if item == ALL:
            added = [MethodEntry(name, name) for name in _default_methods(cells) if name not in named]
        elif isinstance(item, LocatedMapping):
            added = [_read_method(item, cells, file)]
        elif isinstance(item, str):
            added = [MethodEntry(str(item), str(item))]
        else:
            raise UsageError(f"{location}: a method is a name or a mapping with 'method: NAME', not {describe_value(item)}.")
        entries += [_validated(entry, cells, location) for entry in added]
    _require_distinct(entries, cells, line)
    return entries


def _default_methods(cells: Sequence[Cell]) -> list[str]:
    """Return the installed methods that can be loaded, read some data, and accept the models of all cells, of either kind of task."""
    classes: dict[str, type[Method[Any]]] = Plugins(METHODS).loadable()
    all_sharded = all(cell.train.sharded for cell in cells)
    all_closed = all(cell.train.head == CLOSED_FORM for cell in cells)
    reading = [name for name, method in classes.items() if (method.needs.prepare or method.needs.apply) and not method.classes_only]
    accepted = [name for name in reading if all_sharded or not classes[name].sharded]
    return [name for name in accepted if all_closed or not classes[name].closed_form]


def _read_method(item: LocatedMapping, cells: Sequence[Cell], file: GridFile) -> MethodEntry:
    """Read a method that is given as a mapping. Its options are not checked yet."""
    require_known_keys(item, METHOD_KEYS, "a method", file)
    location, method = file.locate(item), item.get("method")
    if not isinstance(method, str) or is_null(method):
        raise UsageError(f"{location}: a method needs a 'method: NAME' line.")
    label = _read_label(item["label"], "label", file.locate(item, "label")) if "label" in item else str(method)
    preset, options = (None if is_null(item.get(key)) else item[key] for key in ("preset", "options"))
    if not isinstance(preset, str | None) or preset == "":
        raise UsageError(f"{file.locate(item, 'preset')}: a preset is a name or a file, not {describe_value(preset)}.")
    if options is not None and not isinstance(options, LocatedMapping):
        raise UsageError(f"{file.locate(item, 'options')}: the options of a method are a mapping, not {describe_value(options)}.")
    preset = file.resolve_path(expand_home(preset)) if preset and is_preset_file(preset) else preset
    return MethodEntry(label, str(method), str(preset) if preset else None, options or {}, _read_conditions(item, cells, file))


def _read_conditions(item: LocatedMapping, cells: Sequence[Cell], file: GridFile) -> dict[str, Any]:
    when = item.get("when")
    if is_null(when):
        return {}
    if not isinstance(when, LocatedMapping):
        raise UsageError(f"{file.locate(item, 'when')}: 'when' is a mapping of dataset and forget, not {describe_value(when)}.")
    require_known_keys(when, ("dataset", "forget"), "'when'", file)
    found = {}
    for key, value in when.items():
        known = {str(getattr(cell, key)): getattr(cell, key) for cell in cells}
        if str(value) not in known:
            problem = f"the grid has no cell with {key} {describe_value(value)}."
            raise UsageError(f"{file.locate(when, key)}: {problem}{did_you_mean(str(value), known)}")
        found[key] = known[str(value)]
    if not any(all(getattr(cell, key) == value for key, value in found.items()) for cell in cells):
        raise UsageError(f"{file.locate(when)}: the grid has no cell with both, so the method would never run.")
    return found


def _validated(entry: MethodEntry, cells: Sequence[Cell], location: str) -> MethodEntry:
    """Return an entry with its options converted to their types, after checking them and its preset for every cell in which it runs."""
    if entry.label in BUILTIN_ROWS.values():
        raise UsageError(f"{location}: every table already has a row '{entry.label}'; give the method another label.")
    with prefix_errors(location):
        method_class: type[Method[Any]] = Plugins(METHODS).load(entry.method)
    spellings = names(method_class.options)
    if isinstance(entry.options, LocatedMapping):
        require_one_spelling(entry.options, method_class.options)
    values = dict(entry.options)
    for dataset, forget in sorted({(cell.train.dataset, cell.forget) for cell in cells if entry.runs_in(cell)}):
        with prefix_errors(location):
            preset = resolve_preset(entry.preset, entry.method, method_class, dataset, forget)
            resolved = method_class.prepare_options(entry.method, preset, entry.options)
        given = (spellings[field_name(key)] for key in entry.options)
        values = {field: getattr(resolved, field) for field in given}
    return dataclasses.replace(entry, options=values)


def _require_distinct(entries: Sequence[MethodEntry], cells: Sequence[Cell], location: str) -> None:
    groups = {(cell.dataset, cell.forget): cell for cell in cells}
    for cell in groups.values():
        labels = [entry.label for entry in entries if entry.runs_in(cell)]
        for label in labels:
            if labels.count(label) > 1:
                raise UsageError(
                    f"{location}: two methods are called '{label}' for data set '{cell.dataset}' with {cell.forget} forget identities; "
                    "give one a label."
                )


def _read_evaluation(grid: LocatedMapping, file: GridFile) -> EvaluateOptions:
    found = grid.get("evaluate")
    if found is None:
        return EvaluateOptions()
    if not isinstance(found, LocatedMapping):
        raise UsageError(
            f"{file.locate(grid, 'evaluate')}: 'evaluate' is a mapping of options of `oneshui evaluate`, not {describe_value(found)}."
        )
    _require_allowed(found, EvaluateOptions, NOT_IN_EVALUATION, found, file)
    return _resolve(EvaluateOptions, found, "'evaluate'", file.locate(found))


def _resolve(options: type[OptionsT], values: Mapping[str, Any], where: str, location: str) -> OptionsT:
    with prefix_errors(location):
        return resolve(options, values, where)


def _require_allowed(
    given: Mapping[str, Any], options: type[Any], refused: Mapping[str, str], within: LocatedMapping, file: GridFile
) -> None:
    """Raise a UsageError for options that a grid cannot set."""
    spellings = names(options)
    require_one_spelling(within, options)
    for key in given:
        field = spellings.get(field_name(key), "")
        if field in refused:
            raise UsageError(f"{file.locate(within, key)}: {flag(field)} does not go here: {refused[field]}.")


def _read_label(value: Any, what: str, location: str) -> str:
    """Return a name or label, checked to be fit for a table."""
    if not isinstance(value, str):
        raise UsageError(f"{location}: a {what} is text, not {describe_value(value)}.")
    text = str(value).strip()
    if not text or len(text) > MAX_LABEL_CHARACTERS or not text.isprintable() or "|" in text:
        raise UsageError(f"{location}: a {what} has 1 to {MAX_LABEL_CHARACTERS} printable characters other than '|'.")
    if PATH_LIKE.match(text):
        raise UsageError(f"{location}: a {what} appears in published tables, and '{text}' looks like a path; write a word.")
    return text
