"""Names that may be published: a built-in data set, a method. Everything else stands as a general word."""

from __future__ import annotations

import re
from typing import Any

from .plugins import DATASETS, Plugins
from .runs import Record

LOCAL_DATASET, LOCAL_MODEL = "a private data set", "a local checkpoint"


METHOD_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


def dataset_name(record: Record) -> str:
    """Return a data set's name as others may know it."""
    return dataset_word(record.options.get("dataset"))


def dataset_word(dataset: Any) -> str:
    """Return what may be told of the word that names a data set."""
    return _builtin(dataset) or LOCAL_DATASET


def _builtin(dataset: Any) -> str | None:
    """Return the name of an installed data set; a path or a folder's name is none."""
    return dataset if isinstance(dataset, str) and dataset in Plugins(DATASETS).names and dataset != "folder" else None
