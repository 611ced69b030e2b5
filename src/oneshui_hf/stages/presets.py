"""Presets: values of a method's options under a name that the method brings along, or in a file that `oneshui tune` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import OneshuiError, UsageError
from ..methods.contract import Method
from ..options import fields
from ..runs import Run, read_object

FORMAT = 1


def preset_values(run: Run, name: str, method_class: type[Method[Any]], preset: str | None, at: str | None = None) -> dict[str, Any]:
    """Return a preset's values for a run: all, or those that act at one of the two stages; none where no preset is given.

    Raises:
        UsageError: There is no such preset, or the file is of another method.
        OneshuiError: The file is damaged.
    """
    if preset is None:
        return {}
    if preset.endswith(".json"):
        values = dict(read_preset(Path(preset), name)["values"])
    else:
        values = method_class.preset(preset, run.record.dataset["name"], run.record.report["split"]["forget_identities"])
    known = fields(method_class.options)
    return {key: value for key, value in values.items() if at is None or key not in known or known[key].metadata["at"] == at}


def read_preset(file: Path, name: str) -> dict[str, Any]:
    """Read a preset file of a method.

    Raises:
        UsageError: It is missing, or of another method.
        OneshuiError: It is damaged, or of a format that this version does not read.
    """
    if not file.is_file():
        raise UsageError(f"There is no preset file {file}; `oneshui tune --method {name}` writes one.")
    found = read_object(file)
    if found.get("format") != FORMAT or not isinstance(found.get("values"), dict) or not isinstance(found.get("trials"), list):
        raise OneshuiError(f"{file} is not a preset file that this version reads.")
    if found.get("method") != name:
        raise UsageError(f"{file} is a preset of method '{found.get('method')}', not of '{name}'.")
    return found
