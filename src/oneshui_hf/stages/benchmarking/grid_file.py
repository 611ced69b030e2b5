"""The file of a grid: a built-in one or the user's, and the paths in it."""

from __future__ import annotations

import contextlib
import dataclasses
from importlib import resources
from pathlib import Path
from typing import Any

from ...errors import UsageError, did_you_mean
from ...option_values import expand_home
from ...yaml_lines import LocatedMapping, YamlFile, is_null, parse_mapping, read_yaml_text


@dataclasses.dataclass(frozen=True)
class GridFile(YamlFile):
    """The file of a grid.

    Attributes:
        folder: The folder that relative paths start from; None for a built-in grid.
    """

    folder: Path | None = None

    def resolve_path(self, value: Any) -> Any:
        """Return the path relative to the file's folder if it exists there, otherwise the value unchanged."""
        if not isinstance(value, str) or not value or self.folder is None:
            return value
        with contextlib.suppress(OSError, ValueError):  # not a path
            found = self.folder / expand_home(value)
            return str(found) if found.exists() else value
        return value


def builtin_grids() -> list[str]:
    """Return the names of the built-in grids."""
    return sorted(file.name.removesuffix(".yaml") for file in _grids_folder().iterdir() if file.name.endswith(".yaml"))


def _grids_folder() -> Any:
    return resources.files(__package__.partition(".")[0]) / "grids"


def read_grid_file(source: str) -> tuple[LocatedMapping, GridFile]:
    """Return the contents of a built-in grid or of a file, and the file.

    Keys without a value are left out, except `methods`, for which nothing is not all.

    Raises:
        UsageError: The grid does not exist, is too large, or is not a YAML mapping.
    """
    builtin = source in builtin_grids()
    path = Path(expand_home(source))
    if not builtin and not path.is_file():
        raise UsageError(f"'{source}' is neither a file nor a built-in grid.{did_you_mean(source, builtin_grids())}")
    name, folder = (f"grid '{source}'", None) if builtin else (source, path.resolve().parent)
    file = GridFile(name, "a grid", "'name: value' lines; see the built-in grids", folder)
    text = (_grids_folder() / f"{source}.yaml").read_text(encoding="utf-8") if builtin else read_yaml_text(path, file)
    grid = parse_mapping(text, file)
    for key in [key for key, value in grid.items() if is_null(value) and key != "methods"]:
        del grid[key]
    return grid, file
