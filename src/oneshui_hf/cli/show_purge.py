"""How a purge is printed."""

from __future__ import annotations

from typing import Any

from .printing import print_line, table


def purge(result: dict[str, Any]) -> None:
    """Print what was removed, or would be removed, and what stays."""
    rows = [[row["place"], row["action"], row["reason"]] for row in result["rows"]]
    table(["file or folder", "action", "reason"], rows, text=(0, 1, 2))
    done = "Nothing was changed (--dry-run)." if result["dry_run"] else f"Runs that named the person and no longer do: {result['runs']:,}."
    print_line(done)
