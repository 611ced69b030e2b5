"""Versions, devices and disk use, for a bug report. Nothing personal: no path, no name of a person, a user or a machine.

oneshui env
"""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from ..cache import cache_root
from ..plugins import DATASETS, METHODS, Plugins
from ..runs import RECORD, RUNS
from .cache_options import EnvironmentOptions

PACKAGES = (
    *("oneshui-hf", "torch", "transformers", "datasets", "accelerate", "evaluate", "huggingface-hub", "safetensors"),
    *("typer", "rich", "numpy", "scipy", "pandas", "pyarrow", "pillow", "cryptography", "matplotlib", "dlib-bin"),
)
VARIABLES = ("ONESHUI_CACHE", "ONESHUI_VAULT", "ONESHUI_PLUGINS", "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN", "OMP_NUM_THREADS")


def environment(options: EnvironmentOptions) -> dict[str, Any]:
    """Describe this machine's set-up.

    Returns:
        `versions` (None for packages that are not installed), `python`, `system`, `devices`, `plugins` (third-party distributions),
        `data`: data folders and caches as number of files and bytes, `variables`: which environment variables are set, not their values.
    """
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {name: _version(name) for name in PACKAGES},
        "devices": _devices(),
        "plugins": sorted({row["from"] for group in (METHODS, DATASETS) for row in Plugins(group).rows()}),
        "data": _data(options),
        "variables": [name for name in VARIABLES if os.environ.get(name)],
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    import torch

    found = [f"cpu, {torch.get_num_threads()} threads"]
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        found.append(f"cuda:{number}, {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def _data(options: EnvironmentOptions) -> list[dict[str, Any]]:
    import datasets

    folders = {"runs": RUNS, "model cache": cache_root(options.cache_dir), "datasets cache": Path(datasets.config.HF_DATASETS_CACHE)}
    found = []
    for name, folder in folders.items():
        files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()] if folder.is_dir() else []
        found.append({"folder": name, "files": len(files), "bytes": sum(file.stat().st_size for file in files)})
    found[0]["count"] = len(list(RUNS.glob(f"*/{RECORD}")))
    return found
