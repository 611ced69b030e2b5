"""Values of options: text, numbers, truth values, paths and lists of them, wherever they come from.

The same text means the same on the command line, in a YAML or preset file, and in Python. Python may also pass numbers (of numpy, too),
`pathlib` paths, and lists.
"""

from __future__ import annotations

import errno
import io
import os
import typing
from collections.abc import Iterable, Mapping, Set
from decimal import Decimal
from types import UnionType
from typing import Any

from .errors import UsageError
from .name_lists import join_names
from .yaml_lines import is_null

LARGEST = 3.4e38  # the largest number of single precision, which models use
MAX_DIGITS = 1000  # of a whole number; a longer one is out of every range, and Python may refuse to print it
MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4095  # of a file or folder, and of a path: the limits of common file systems
MAX_SHOWN = 100  # characters of an invalid value in a message
WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
NOUNS = {int: "a whole number", float: "a number", bool: "true or false"}


def convert_value(value: Any, wanted: Any, metadata: Mapping[str, Any], label: str) -> Any:
    """Return a value in a type of an options dataclass; see `options.convert`.

    Args:
        value: The value.
        wanted: int, float, bool, str, a tuple of str, or one of them or None.
        metadata: The field's metadata: whether it is a path, or a text of joined names.
        label: The option, for messages.

    Raises:
        UsageError: The value has another type.
    """
    optional = typing.get_origin(wanted) in (typing.Union, UnionType)
    if optional:
        wanted = next(t for t in typing.get_args(wanted) if t is not type(None))
    path, is_list = bool(metadata.get("path")), typing.get_origin(wanted) in (tuple, list)
    if is_list:
        items = () if value is None else [value] if _is_single(value) else _items(value, label)
        return tuple(_text(item, path, label) for item in items)
    if is_null(value) and not (path and value == "~"):  # in a file, `~` means nothing, unless it is the home folder
        if optional:
            return None
        if wanted not in NOUNS:
            raise _empty(label)
    if metadata.get("joined") and not _is_single(value):
        names = [_text(item, False, label) for item in _items(value, label)]
        return names[0] if len(names) == 1 else join_names(names) or None
    if not _is_single(value):
        raise UsageError(f"{label} takes one value, not {_kind(value)}.")
    if wanted not in NOUNS:
        return _text(value, path, label)
    if isinstance(value, str) and value == "":
        raise _empty(label)
    try:
        return _boolean(value) if wanted is bool else _whole_number(value) if wanted is int else _number(value)
    except (ArithmeticError, TypeError, ValueError):
        raise UsageError(f"{label} takes {NOUNS[wanted]}, not '{shown(value)}'.") from None


def expand_home(path: str) -> str:
    """Return a path with a leading `~` or `~user` replaced by the home folder. An unknown user's is left as it is."""
    return os.path.expanduser(path) if path.startswith("~") else path  # noqa: PTH111  Path.expanduser fails for unknown users


def shown(value: Any) -> str:
    """Return an invalid value for a message, in one line and cut if it is long."""
    try:
        text = " ".join(str(value).split())
    except ValueError:  # Python refuses to print integers of thousands of digits
        text = f"a number of {value.bit_length()} bits"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _is_single(value: Any) -> bool:
    """Whether a value is one value, not several: text, a number, or anything else that is not a collection."""
    if isinstance(value, str | bytes | bytearray | memoryview | os.PathLike | io.IOBase) or not isinstance(value, Iterable):
        return True
    return getattr(value, "shape", None) == ()  # an array without axes


def _items(value: Any, label: str) -> list[Any]:
    """Return the items of a list.

    Raises:
        UsageError: It has no order, or contains a list.
    """
    if isinstance(value, Mapping | Set) or getattr(value, "ndim", 1) > 1:
        raise UsageError(f"{label} takes one value or a list, not {_kind(value)}.")
    items = list(value)
    if nested := [item for item in items if not _is_single(item)]:
        raise UsageError(f"{label} takes a list of single values, not a list with {_kind(nested[0])}.")
    return items


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, Set):
        return "a set"
    if getattr(value, "ndim", 1) > 1:
        return "a table"
    return "an empty list" if isinstance(value, list | tuple) and not value else "a list"


def _text(value: Any, path: bool, label: str) -> str:
    """Return text as it was given. An integer is accepted as text. A truth value or a fraction is not: it has several spellings."""
    noun = "a path" if path else "text"
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif getattr(value, "shape", None) == () and hasattr(value, "item"):  # an array without axes
        value = value.item()
    if value is None:
        raise UsageError(f"{label} takes {noun}, not None.")
    if not isinstance(value, str):
        try:
            value = str(_whole_number(value, text=True))
        except (ArithmeticError, TypeError, ValueError):
            if isinstance(value, bool | float):
                raise UsageError(f"{label} takes {noun}, not {value}; write it in quotes.") from None
            raise UsageError(f"{label} takes {noun}, not a value of type {type(value).__name__}.") from None
    if value == "":
        raise _empty(label)
    if "\0" in value:
        raise UsageError(f"{label} contains a character that no {noun.removeprefix('a ')} has, NUL: {shown(value)!r}.")
    try:
        value.encode()
    except UnicodeEncodeError:  # records are UTF-8
        raise UsageError(f"{label} contains bytes that are not UTF-8: {shown(value)}; rename it.") from None
    if not path:
        return str(value)
    if len(value.encode()) > MAX_PATH_BYTES or any(len(part.encode()) > MAX_NAME_BYTES for part in value.split("/")):
        raise UsageError(f"{label} is longer than a path can be: {shown(value)}")
    place = expand_home(str(value))
    try:
        os.stat(place)  # noqa: PTH116  `Path.resolve` fails for such a link, in each version of Python with another error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(f"{label} is, or is below, a link that leads to itself: {shown(value)}.") from None
    return place


def _empty(label: str) -> UsageError:
    return UsageError(f"{label} is empty; give a value or omit the option.")


def _boolean(value: Any) -> bool:
    word = str(value).lower()
    if word not in WORDS:
        raise ValueError
    return WORDS[word]


def _whole_number(value: Any, *, text: bool = False) -> int:
    """Return a whole number. `3.0` and `1e3` are whole numbers; with `text`, only integers are.

    Raises:
        TypeError: The value is no number.
        ValueError: It is a truth value or no whole number.
        ArithmeticError: It is no whole number.
    """
    _require_number(value)
    if not isinstance(value, str) and hasattr(value, "__index__"):
        number = int(value.__index__())
    elif text:
        raise ValueError
    else:
        written = value if isinstance(value, str) else repr(float(value))
        float(written)  # refuses what is no number, and an underscore that does not separate digits
        exact = Decimal(written.replace("_", ""))
        if not exact.is_finite() or exact.adjusted() >= MAX_DIGITS or exact != exact.to_integral_value():
            raise ValueError
        number = int(exact)
    if number.bit_length() > 4 * MAX_DIGITS:
        raise ValueError
    return number


def _number(value: Any) -> float:
    """Return a finite number.

    Raises:
        TypeError: The value is no number.
        ValueError: It is a truth value, no number, or not finite.
    """
    _require_number(value)
    number = float(value)
    if not abs(number) <= LARGEST:  # NaN would pass every range
        raise ValueError
    return number


def _require_number(value: Any) -> None:
    """Raise an error for what `float` or `int` would accept and nobody can have meant: truth values, bytes."""
    if isinstance(value, bool | bytes | bytearray) or str(getattr(value, "dtype", "")).endswith("bool"):
        raise ValueError
