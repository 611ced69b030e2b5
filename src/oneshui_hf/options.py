"""Options as frozen dataclasses: one definition serves the command line, the YAML file and the Python call.

A field made by `option(...)` carries its help text, its range and its flags. Commands and methods define their options next to their
code. `resolve` converts values from a YAML file, a Python call or another run's record into an instance. It raises an error in one
sentence if a name is unknown or a value is out of range.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from .errors import UsageError, did_you_mean, nearest
from .option_values import convert_value, shown
from .yaml_lines import LocatedMapping, prefix_errors

OptionsT = TypeVar("OptionsT")


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    flags: Sequence[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str | int] = (),
    at: str = "prepare",
    search: tuple[float, float] | bool | None = None,
    formerly: Sequence[str] = (),
    panel: str = "Run",
    path: bool = False,
    joined: bool = False,
    secret: bool = False,
) -> Any:
    """Define one option.

    Args:
        default: The value if none is given. Without a default the option is required.
        help: One sentence for `--help`.
        flags: Names on the command line; `--field-name` where empty.
        minimum: Smallest allowed value, inclusive.
        maximum: Largest allowed value, inclusive.
        choices: The allowed words or whole numbers.
        at: For a method's options, the step that reads them: "prepare" or "apply".
        search: For a method's options, the range that `oneshui tune` searches; True for a boolean or a choice. Options without a range
            keep their value.
        formerly: Earlier names of the field. Records, presets and grids that were written with them are still read.
        panel: For a command's options, the panel of `--help` that lists it.
        path: Whether the value is, or may be, a path: a leading `~` is then replaced by the home folder.
        joined: Whether the text lists names with commas between them, so that a list of names is accepted as well.
        secret: Whether the value must not be shown, so that `repr` leaves it out.
    """
    metadata = {
        "help": help,
        "flags": tuple(flags),
        "min": minimum,
        "max": maximum,
        "choices": tuple(choices),
        "at": at,
        "search": search,
        "formerly": tuple(formerly),
        "panel": panel,
        "path": path,
        "joined": joined,
    }
    return dataclasses.field(default=default, repr=not secret, metadata=metadata)


def fields(options: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields of an options class by name."""
    return {field.name: field for field in dataclasses.fields(options)}


def names(options: type[Any]) -> dict[str, str]:
    """Return every name of a field (its own, those of its flags, earlier ones), each with the field's name."""
    known = {name: name for name in fields(options)}
    for name, field in fields(options).items():
        words = [spelling.partition("/")[0] for spelling in field.metadata.get("flags", ())]  # "--on/--off" answers to on
        known |= {field_name(word): name for word in (*words, *field.metadata.get("formerly", ()))}
    return known


def flag(name: str) -> str:
    """Return the command-line spelling of a field's name."""
    return "--" + name.replace("_", "-")


def field_name(word: str) -> str:
    """Return the field's name of a command-line spelling: `--batch-size` and `batch-size` name `batch_size`."""
    return word.lstrip("-").replace("-", "_")


def types_of(options: type[Any]) -> dict[str, Any]:
    """Return the resolved type of every field. Resolving is slow: call this once, not for each field."""
    return typing.get_type_hints(options)


def resolve(options: type[OptionsT], values: Mapping[str, Any], where: str) -> OptionsT:
    """Return an instance of an options class.

    Args:
        options: The dataclass.
        values: Field name (with - or _) to value; text is converted to the field's type.
        where: What the values belong to, for messages ("method 'name'").

    Raises:
        UsageError: A name is unknown, or a value has the wrong type or is out of range.
    """
    known, spellings = fields(cast(type[Any], options)), names(cast(type[Any], options))
    types = types_of(cast(type[Any], options))
    given: dict[str, Any] = {}
    for key, value in values.items():
        spelling = field_name(key)
        if spelling not in spellings:
            with prefix_errors(getattr(key, "location", None)):
                raise UsageError(f"{where} has no option {flag(spelling)}.{did_you_mean(flag(spelling), map(flag, spellings))}")
        name = spellings[spelling]
        given[name] = convert(value, types[name], known[name], where)
    _require(known, given, where)
    return options(**given)


def _require(known: Mapping[str, dataclasses.Field[Any]], given: Mapping[str, Any], where: str) -> None:
    missing = [n for n, f in known.items() if f.default is dataclasses.MISSING and n not in given]
    if missing:
        raise UsageError(f"{where} needs {' and '.join(map(flag, missing))}.")


def require_one_spelling(written: LocatedMapping, options: type[Any]) -> None:
    """Raise a UsageError for an option that a file gives twice, in two spellings (`batch-size` and `batch_size`)."""
    known, seen = names(options), dict[str, str]()
    for key in written.own:
        name = known.get(field_name(key), key)
        if name in seen:
            with prefix_errors(f"{written.location.rpartition(' ')[0]} {written.lines[key]}"):
                raise UsageError(f"'{seen[name]}' and '{key}' are the same option; keep one of them.")
        seen[name] = key


def convert(value: Any, wanted: Any, field: dataclasses.Field[Any], where: str) -> Any:
    """Return a value in the type of a field. Text from the command line, a file and Python is read in the same way.

    Args:
        value: Text, a value of any type, or a value of a file (`yaml_lines`).
        wanted: The field's resolved type, see `types_of`.
        field: The field, with range and choices in its metadata.
        where: What the option belongs to, for messages.

    Raises:
        UsageError: The value has the wrong type or is out of range. The message starts with the location of a value of a file.
    """
    label = f"{flag(field.name)} of {where}"
    with prefix_errors(getattr(value, "location", None)):
        value = convert_value(value, wanted, field.metadata, label)
        if value is not None:
            _check_range(value, field.metadata, label)
    return value


def _check_range(value: Any, metadata: Mapping[str, Any], label: str) -> None:
    low, high, choices = metadata.get("min"), metadata.get("max"), metadata.get("choices")
    if low is not None and value < low:
        raise UsageError(f"{label} must be at least {low}, not {shown(value)}.")
    if high is not None and value > high:
        raise UsageError(f"{label} must be at most {high}, not {shown(value)}.")
    if choices and value not in choices:
        words = list(map(str, choices))
        raise UsageError(f"{label} must be one of {', '.join(words)}, not '{shown(value)}'.{nearest(str(value), words)}")


def parse_words(words: Sequence[str], options: type[Any], where: str) -> dict[str, Any]:
    """Read `--key value`, `--key=value`, `--flag` and `--no-flag` words that the command itself did not know.

    Raises:
        UsageError: A word is no option of `options`, or an option lacks its value.
    """
    spellings = names(options)
    types = types_of(options)
    flags = {spelling for spelling, name in spellings.items() if types[name] is bool}
    values: dict[str, Any] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--"):
            raise UsageError(f"{where} takes no argument '{word}'.")
        key, equals, text = word[2:].partition("=")
        spelling = field_name(key)
        negated = spelling.removeprefix("no_")
        if spelling not in spellings and negated in flags:
            if equals:
                raise UsageError(f"--{key} of {where} takes no value; leave '={text}' out.")
            values[spellings[negated]] = False
        elif spelling not in spellings:
            raise UsageError(f"{where} has no option --{key}.{did_you_mean('--' + key, map(flag, spellings))}")
        elif equals:
            values[spellings[spelling]] = text
        elif spelling in flags:
            values[spellings[spelling]] = True
        elif not queue:
            raise UsageError(f"--{key} of {where} needs a value.")
        else:
            values[spellings[spelling]] = queue.pop(0)
    return values


def current_names(options: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored values by the current names of their fields.

    Earlier names and command-line spellings are translated. Unknown names are kept, so that `resolve` reports them.
    """
    known = names(options)
    return {known.get(field_name(key), key): value for key, value in values.items()}


def original_names(options: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored values by the first name of each field, for hashes that must not change when a field is renamed."""
    first = {name: (*field.metadata.get("formerly", ()), name)[0] for name, field in fields(options).items()}
    return {first.get(name, name): value for name, value in current_names(options, values).items()}
