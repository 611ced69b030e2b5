"""Presets: option values of a method, either built into the method under a name or in a file that `oneshui tune` wrote."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import OneshuiError, UsageError
from ..methods.base import Method
from ..options import current_names, fields, resolve
from ..public_names import dataset_name
from ..reporting import SILENT, Reporter
from ..runs import Run, read_object

FORMAT = 1
SCORES = {"retain", "forget", "val", "tow"}


def preset_values(run: Run, name: str, method_class: type[Method[Any]], preset: str | None, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Return the values of a preset for a run; none without a preset.

    Raises:
        UsageError: The preset is unknown, the file belongs to another method, or a value is invalid.
        OneshuiError: The file is damaged.
    """
    values = resolve_preset(preset, name, method_class, str(run.record.dataset.get("name")), run.request_size)
    if preset and is_preset_file(preset) and (dataset := read_object(Path(preset)).get("dataset")) != dataset_name(run.record):
        reporter.note(f"{preset} was tuned on other data ({dataset}).")
    return values


def is_preset_file(text: str) -> bool:
    """Whether a text names a preset file, not a preset of the method: it ends in .json or contains a path separator."""
    return text.endswith(".json") or "/" in text or os.sep in text


def resolve_preset(preset: str | None, name: str, method_class: type[Method[Any]], dataset: str, forget: int) -> dict[str, Any]:
    """Return the values of a preset by field; none without a preset.

    Args:
        preset: Name of a preset of the method, or path of a preset file.
        name: Name of the method.
        method_class: The method.
        dataset: Name of the data set, for a preset of the method.
        forget: Number of forget identities, for a preset of the method.

    Raises:
        UsageError: The preset is unknown, the file belongs to another method or contains no setting that worked, or a value is invalid.
        OneshuiError: The file is damaged.
    """
    if preset is None:
        return {}
    if not is_preset_file(preset):
        return current_names(method_class.options, method_class.preset(preset, dataset, forget))
    stored = read_preset(Path(preset), name, method_class)
    if stored["scores"] is None:
        raise UsageError(f"No setting in {preset} has worked, so it has no values; continue the search with `oneshui tune --resume`.")
    return dict(stored["values"])


def values_for_step(method_class: type[Method[Any]], values: Mapping[str, Any], step: str) -> dict[str, Any]:
    """Return the values that `step` ("prepare" or "apply") reads; all of them if the method is never prepared."""
    known = fields(method_class.options)
    return {key: value for key, value in values.items() if method_class.prepares == "never" or known[key].metadata["at"] == step}


def read_preset(file: Path, name: str, method_class: type[Method[Any]]) -> dict[str, Any]:
    """Read a preset file of a method.

    Returns:
        The file's contents. Options are named by field, and `values` and the values of each trial have the options' types.

    Raises:
        UsageError: It is missing, belongs to another method, or a value is invalid.
        OneshuiError: It is damaged, or has a format that this version does not read.
    """
    if not file.is_file():
        raise UsageError(f"There is no preset file {file}; `oneshui tune --method {name}` writes one.")
    found = read_object(file)
    if found.get("format") != FORMAT or not isinstance(found.get("trials"), list):
        raise OneshuiError(f"{file} is not a preset file that this version reads.")
    if found.get("method") != name:
        raise UsageError(f"{file} is a preset of method '{found.get('method')}', not of '{name}'.")
    where = f"method '{name}' in {file}"
    settings = ({"values": found.get("values"), "scores": found.get("scores")}, *found["trials"])
    if not all(map(_is_setting, settings)) or not _are_scores(found.get("nothing")):
        raise OneshuiError(f"{file} is damaged or was changed by hand; search again with `oneshui tune --overwrite`.")
    trials = [trial | {"values": _checked_values(method_class, trial["values"], where)} for trial in found["trials"]]
    renamed = {key: current_names(method_class.options, found[key]) for key in ("given", "searched") if isinstance(found.get(key), dict)}
    return found | renamed | {"values": _checked_values(method_class, found["values"], where), "trials": trials}


def _is_setting(part: Any) -> bool:
    """Whether an object has values, and scores or None because the setting failed."""
    return isinstance(part, dict) and isinstance(part.get("values"), dict) and (part.get("scores") is None or _are_scores(part["scores"]))


def _are_scores(scores: Any) -> bool:
    """Whether an object contains all scores, each a finite number."""
    complete = isinstance(scores, dict) and scores.keys() == SCORES
    return complete and all(isinstance(score, float | int) and math.isfinite(score) for score in scores.values())


def _checked_values(method_class: type[Method[Any]], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return values by field, converted and checked."""
    resolved: Any = resolve(method_class.options, values, where)
    return {field: getattr(resolved, field) for field in current_names(method_class.options, values)}
