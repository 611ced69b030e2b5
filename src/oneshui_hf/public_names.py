"""Names that may be published: a built-in data set, a method. Every other name is replaced by a general term."""

from __future__ import annotations

import re
from typing import Any

from .plugins import DATASETS, Plugins
from .runs import Record

TINY = "tiny"  # the model without a checkpoint
LOCAL_DATASET, LOCAL_MODEL = "a private data set", "a local checkpoint"
METHOD_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")


def dataset_name(record: Record) -> str:
    """Return the publishable name of a run's data set."""
    return public_dataset_name(record.options.get("dataset"))


def public_dataset_name(dataset: Any) -> str:
    """Return the publishable name of a `--dataset` value: an installed data set keeps its name, a path or folder does not."""
    return _installed_dataset(dataset) or LOCAL_DATASET


def _installed_dataset(dataset: Any) -> str | None:
    """Return the name of an installed data set; None for a path or a folder."""
    return dataset if isinstance(dataset, str) and dataset in Plugins(DATASETS).names and dataset != "folder" else None
