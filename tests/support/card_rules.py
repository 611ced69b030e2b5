"""What the Hub requires of the YAML header of a card, as far as its documentation states it; `ModelCard.validate` asks the Hub itself.

https://huggingface.co/docs/hub/model-cards, https://huggingface.co/docs/hub/datasets-cards and their specifications in huggingface_hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from numbers import Real
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
WORD = re.compile(r"[a-z0-9]+([_-][a-z0-9]+)*")  # a task, a metric
TASKS = ("image-classification", "image-feature-extraction", "zero-shot-image-classification")
RELATIONS = ("adapter", "merge", "quantized", "finetune")
LISTS = ("tags", "datasets", "metrics", "task_categories")
TEXTS = ("license", "library_name", "pipeline_tag", "base_model", "base_model_relation", "pretty_name")


def header(card: str) -> dict[str, Any]:
    """Return the YAML header of a card."""
    start, text, _ = card.split("---\n", 2)
    assert start == ""
    found = yaml.safe_load(text)
    assert isinstance(found, dict)
    return found


def problems(card: str) -> list[str]:
    """Return what the Hub would refuse or ignore."""
    return list(_problems(header(card)))


def _problems(data: dict[str, Any]) -> Iterator[str]:
    yield from (f"{key} is no list of texts" for key in LISTS if key in data and not _texts(data[key]))
    yield from (f"{key} is no text" for key in TEXTS if key in data and not isinstance(data[key], str))
    yield from (f"{key} is empty" for key, value in data.items() if value in (None, "", [], {}))
    if not LICENSE.fullmatch(str(data.get("license"))):
        yield "license is missing or no identifier"
    for key in ("datasets", "base_model"):
        for name in data.get(key, []) if isinstance(data.get(key), list) else [data[key]] if key in data else []:
            if not _is_repository(name):
                yield f"{key} names no repository: {name}"
    if data.get("base_model_relation", RELATIONS[0]) not in RELATIONS:
        yield "base_model_relation is unknown"
    for task in [data.get("pipeline_tag", TASKS[0]), *data.get("task_categories", [])]:
        if task not in TASKS:
            yield f"the task {task} is unknown"
    yield from (f"the metric {name} is no identifier" for name in data.get("metrics", []) if not WORD.fullmatch(name))
    yield from (f"the tag {tag} is too long" for tag in data.get("tags", []) if len(tag) > 100)
    yield from (f"the tag {tag} is given twice" for tag in set(data.get("tags", [])) if data["tags"].count(tag) > 1)
    for model in data.get("model-index", []):
        yield from _problems_of_index(model)
    for config in data.get("configs", []):
        if not isinstance(config.get("config_name"), str) or not all({"split", "path"} <= set(files) for files in config["data_files"]):
            yield "a configuration has no name, or a part without a path"


def _problems_of_index(model: dict[str, Any]) -> Iterator[str]:
    if not isinstance(model.get("name"), str) or not model.get("results"):
        yield "the model-index has no name, or no results"
    for result in model.get("results", []):
        if result.get("task", {}).get("type") not in TASKS:
            yield "a result has no known task"
        dataset = result.get("dataset", {})
        if not (isinstance(dataset.get("name"), str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(dataset.get("type")))):
            yield "the data set of a result has no name, or no type without spaces"
        for metric in result.get("metrics") or [{}]:
            if (
                not WORD.fullmatch(str(metric.get("type")))
                or isinstance(metric.get("value"), bool)
                or not isinstance(metric.get("value"), Real)
            ):
                yield "a metric of a result has no type, or no number"


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def _is_repository(name: Any) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
