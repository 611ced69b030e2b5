"""Printing: JSON on stdout, tables and lines without wrapping. All text is printed safely for a terminal, see `printable`."""

from __future__ import annotations

import io
import json
import sys
import traceback
from collections.abc import Collection, Sequence
from typing import Any

from ..printable import escape_json, printable

MIN_TEXT = 24  # width of a text column, at least; longer words are folded on a narrow terminal
MAX_WIDTH = 1000  # of a table


def escape_unencodable() -> None:
    """Print characters that the encoding of the terminal lacks as escapes, instead of failing: a label in another script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_json(value: Any) -> None:
    """Print JSON as every command's `--json` does. Characters that stdout cannot encode are escaped as JSON escapes them."""
    text = escape_json(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2, sort_keys=True)
    print(text)


def print_traceback(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Print the traceback of an error on stderr."""
    print(printable("".join(traceback.format_exception(kind, error, trace)), keep="\n"), file=sys.stderr, end="")


def print_line(line: str) -> None:
    """Print a line."""
    _print(printable(line))


def print_indented(line: str, indent: int = 4) -> None:
    """Print a line with an indent, which its further lines on a narrow terminal have as well."""
    from rich.padding import Padding
    from rich.text import Text

    text = printable(line)
    _print(Padding(Text(text), (0, 0, 0, indent), expand=False) if sys.stdout.isatty() else f"{'':{indent}}{text}")


def _print(renderable: Any) -> None:
    from rich.console import Console
    from rich.measure import Measurement

    # Without a terminal no width applies: tables are not cut and paths are not wrapped. A narrow one keeps numbers whole.
    plain: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}  # a path may contain brackets and colons
    console = Console(**plain) if sys.stdout.isatty() else Console(**plain, width=200, soft_wrap=True)
    if (least := Measurement.get(console, console.options.update(max_width=MAX_WIDTH), renderable).minimum) > console.width:
        console = Console(**plain, width=least, soft_wrap=True)
    console.print(renderable)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str | None = None,
    text: Sequence[int] = (0,),
    red: Collection[int] = (),
) -> None:
    """Print a table. Columns are numbers except those at the positions in `text`. Cells are wrapped between words, and never cut.

    On a terminal, the rows at the positions in `red` are red.
    """
    from rich import box
    from rich.table import Table

    grid = Table(title=title and printable(title), box=box.SIMPLE_HEAD, title_justify="left")
    columns = [printable(column, keep="\n") for column in columns]
    rows = [[printable(cell) for cell in row] for row in rows]
    for number, column in enumerate(columns):
        words = [word for cell in (column, *(row[number] for row in rows)) for word in cell.split()]
        longest = max(map(len, words), default=0)
        is_text = number in text
        width = min(longest, MIN_TEXT) if is_text else longest  # a long path may be folded, a number may not
        grid.add_column(column, justify="left" if is_text else "right", min_width=width, overflow="fold")
    for place, row in enumerate(rows):
        grid.add_row(*row, style="red" if place in red else None)
    _print(grid)


def number(value: float | None, digits: int) -> str:
    """Return a number with some decimals; "-" if it is unknown."""
    return "-" if value is None else f"{value:.{digits}f}"


def number_with_interval(value: float | None, ends: Sequence[float] | None, digits: int) -> str:
    """Return a number with its confidence interval, if there is one."""
    text = number(value, digits)
    return f"{text} [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]" if ends else text


def megabytes(size: int) -> str:
    """Return a number of bytes in megabytes."""
    return f"{size / 1e6:,.1f} MB"
