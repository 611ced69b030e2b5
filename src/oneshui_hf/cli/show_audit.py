"""How an audit is printed."""

from __future__ import annotations

from typing import Any

from ..stages.auditing.table import audit_table, owner_sentences
from .printing import print_indented, print_line, table


def audit(result: dict[str, Any]) -> None:
    """Print the verdict, the candidates with the best ranks, what was not run, and what an audit cannot show."""
    print_line(result["verdict"])
    shown = audit_table(result)
    text = [number for number in range(len(shown.columns)) if number not in shown.numbers]
    table([column.replace(" (", "\n(").replace(" by the", "\nby the") for column in shown.columns], shown.rows, shown.title, text)
    for sentence in (*owner_sentences(result), *result["notes"]):
        print_line(sentence)
    for title, key in (("Not run:", "not_run"), ("What this cannot show:", "cannot_show")):
        if result[key]:
            print_line(title)
        for sentence in result[key]:
            print_indented(f"- {sentence}", 2)
    if result["output"]:
        print_line(f"Next: oneshui report {result['output']}")
