"""Presets: values of a method's options under a name that the method brings along, or in a file that `oneshui tune` wrote."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import OneshuiError, UsageError
from ..methods.base import Method
from ..options import field_name, fields, names, resolve
from ..public_names import dataset_name
from ..reporting import SILENT, Reporter
from ..runs import Run, read_object

FORMAT = 1
SCORES = {"retain", "forget", "val", "tow"}


def preset_values(run: Run, name: str, method_class: type[Method[Any]], preset: str | None, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Return a preset's values for a run; none where no preset is given.

    Raises:
        UsageError: There is no such preset, the file is of another method, or a value is not one that the option takes.
        OneshuiError: The file is damaged.
    """
    if preset is None:
        return {}
    if not _is_file(preset):
        return method_class.preset(preset, run.record.dataset["name"], run.request_size)
    found = read_preset(Path(preset), name, method_class)
    if found["scores"] is None:
        raise UsageError(f"No setting in {preset} has worked, so there is none to take; go on searching with `oneshui tune --resume`.")
    if found.get("dataset") != dataset_name(run.record):
        reporter.note(f"{preset} was found on other data ({found.get('dataset')}).")
    return dict(found["values"])


def acting(method_class: type[Method[Any]], values: Mapping[str, Any], at: str) -> dict[str, Any]:
    """Return the values that act at a stage; all of them where the method has but one."""
    known = fields(method_class.options)
    return {key: value for key, value in values.items() if method_class.prepares == "never" or known[key].metadata["at"] == at}


def read_preset(file: Path, name: str, method_class: type[Method[Any]]) -> dict[str, Any]:
    """Read a preset file of a method.

    Returns:
        What is in it, `values` and those of each trial by field and in the options' own types.

    Raises:
        UsageError: It is missing, of another method, or a value is not one that the option takes.
        OneshuiError: It is damaged, or of a format that this version does not read.
    """
    if not file.is_file():
        raise UsageError(f"There is no preset file {file}; `oneshui tune --method {name}` writes one.")
    found = read_object(file)
    if found.get("format") != FORMAT or not isinstance(found.get("trials"), list):
        raise OneshuiError(f"{file} is not a preset file that this version reads.")
    if found.get("method") != name:
        raise UsageError(f"{file} is a preset of method '{found.get('method')}', not of '{name}'.")
    where = f"method '{name}' in {file}"
    parts = ({"values": found.get("values"), "scores": found.get("scores")}, *found["trials"])
    if not all(map(_sound, parts)) or not _numbers(found.get("nothing")):
        raise OneshuiError(f"{file} is damaged or was changed by hand; search anew with `oneshui tune --overwrite`.")
    trials = [trial | {"values": _values(method_class, trial["values"], where)} for trial in found["trials"]]
    return found | {"values": _values(method_class, found["values"], where), "trials": trials}


def _is_file(preset: str) -> bool:
    return preset.endswith(".json") or os.sep in preset


def _sound(part: Any) -> bool:
    """Whether something has values, and scores, or none because it failed."""
    return isinstance(part, dict) and isinstance(part.get("values"), dict) and (part.get("scores") is None or _numbers(part["scores"]))


def _numbers(scores: Any) -> bool:
    """Whether these are scores, finite numbers all."""
    known = isinstance(scores, dict) and scores.keys() == SCORES
    return known and all(isinstance(score, float | int) and math.isfinite(score) for score in scores.values())


def _values(method_class: type[Method[Any]], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return values by field, converted and checked."""
    resolved: Any = resolve(method_class.options, values, where)
    spellings = names(method_class.options)
    return {field: getattr(resolved, field) for field in (spellings[field_name(key)] for key in values)}
