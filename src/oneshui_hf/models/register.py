"""Registers this package's architectures with transformers, so that `transformers.pipeline` loads every run after `import oneshui_hf`.

transformers takes new architectures only as classes, which need torch, and has no entry point for packages that add some. Importing both
with `oneshui_hf` would cost seconds. So the architectures are registered when transformers loads its table of models, which every pipeline
and every Auto class for models does first.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

TABLE = "transformers.models.auto.modeling_auto"  # the module with the table of models


def register() -> None:
    """Register the architectures now."""
    import_module(".backbone", __package__)  # importing them registers them
    import_module(".sharded", __package__)
    import_module(".closed_form", __package__)


def register_with_transformers() -> None:
    """Register the architectures as soon as transformers has loaded its table of models; now, if it has."""
    if TABLE in sys.modules:
        register()
    elif not any(isinstance(finder, _TableFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TableFinder())


class _TableFinder(MetaPathFinder):
    """Finds the table of models as Python would, and registers the architectures after it was executed. All else is left to Python."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != TABLE:
            return None
        sys.meta_path.remove(self)  # so the search below does not end here again
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
