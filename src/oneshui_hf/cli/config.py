"""The file of `--config`: options of one command."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError, did_you_mean
from ..option_values import expand_home, shown
from ..options import field_name, names, require_one_spelling
from ..yaml_lines import LocatedMapping, YamlFile, parse_mapping, prefix_errors, read_yaml_text


def read_config(name: str) -> LocatedMapping:
    """Read a YAML file of options. Values stay as they are written; the type of each option decides what they mean.

    Raises:
        UsageError: The file is missing, too large, not YAML, or no mapping.
    """
    path = Path(expand_home(name))
    found = False
    with contextlib.suppress(OSError):  # the name is too long
        found = path.exists() and not path.is_dir()
    if not found:
        raise UsageError(f"There is no configuration file {shown(name)}.")
    file = YamlFile(name, "a configuration", "'option: value' lines")
    return parse_mapping(read_yaml_text(path, file), file)


def merge_config(stored: LocatedMapping, given: Mapping[str, Any], options: type[Any], command: str, method: Any = None) -> dict[str, Any]:
    """Return the options of a configuration, replaced by those of the command line.

    Args:
        stored: The configuration.
        given: The options of the command line, by field.
        options: The options of the command.
        command: The words that call the command, for messages.
        method: The class of the method whose options the command accepts as well.

    Raises:
        UsageError: A name is unknown, or an option is given in two spellings.
    """
    own, further = names(options), names(method.options) if method else {}
    for known in filter(None, (options, method and method.options)):
        require_one_spelling(stored, known)
    merged: dict[str, Any] = {}
    for key, value in stored.items():
        name = field_name(key)
        if name not in own and name not in further:
            with prefix_errors(f"{stored.location.rpartition(' ')[0]} {stored.lines[key]}"):
                raise UsageError(f"'{key}' is no option of '{command}'.{did_you_mean(name, {*own, *further})}")
        merged[own.get(name) or further[name]] = value
    return merged | dict(given)
