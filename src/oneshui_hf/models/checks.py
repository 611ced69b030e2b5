"""Checks of a checkpoint before its model is built: no code of its own, and the packages that it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import OneshuiError, first_line


def missing_package(name: str | Path, error: ImportError) -> str:
    """Return a sentence on the package that a checkpoint's architecture needs."""
    from transformers.utils import is_timm_available

    if "timm" in str(error) and not is_timm_available():
        return f'{name} is a model of timm, which is not installed; run: pip install "oneshui-hf[timm]"'
    return f"{name} needs a package that is not installed: {first_line(error)}"


def reject_code(name: str | Path) -> None:
    """Check that a checkpoint does not bring its own Python code, which is never run.

    Raises:
        OneshuiError: Its config names some.
    """
    from transformers import PreTrainedConfig

    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
    except (OSError, ValueError):  # there is no config, which is reported where it is read
        return
    if _names_code(config):
        raise OneshuiError(f"{name} brings its own Python code (auto_map in config.json), which is not run; use another model.")


def _names_code(value: Any) -> bool:
    if isinstance(value, dict):
        return "auto_map" in value or any(map(_names_code, value.values()))
    return isinstance(value, list) and any(map(_names_code, value))
