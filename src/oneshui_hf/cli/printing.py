"""Printing: JSON on stdout, tables and lines without wrapping."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def print_json(value: Any) -> None:
    """Print JSON as every command's `--json` does."""
    print(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))


def _print(renderable: Any) -> None:
    import sys

    from rich.console import Console

    # Without a terminal there is no width to keep to: a table is not cut, a path is not broken.
    plain: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}  # a path may hold brackets and colons
    console = Console(**plain) if sys.stdout.isatty() else Console(**plain, width=200, soft_wrap=True)
    console.print(renderable)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, words: Sequence[int] = (0,)) -> None:
    """Print a table; all columns but those of words are numbers."""
    from rich import box
    from rich.table import Table

    grid = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for number, column in enumerate(columns):
        grid.add_column(column, justify="left" if number in words else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    _print(grid)
