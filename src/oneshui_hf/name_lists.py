"""Names joined by commas, where a name may contain a comma itself: the class `(25, 32)`, the column `Age, in years`."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterable, Sequence


def join_names(names: Iterable[str]) -> str:
    """Return names as one text, which `split_names` splits again. Names with a comma, a quotation mark or a line break are quoted."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(names)  # quotes a name with a line break
    return line.getvalue().removesuffix("\n")


def split_names(text: str) -> tuple[str, ...]:
    """Return the names in 'a, b'. A name in quotation marks may contain a comma. Empty names are left out."""
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), skipinitialspace=True))
    except csv.Error:
        rows = []
    names = rows[0] if len(rows) == 1 else text.split(",")  # otherwise it has a line break outside of quotation marks
    return tuple(name.strip() for name in names if name.strip())


def match_names(words: Sequence[str], known: Collection[str]) -> tuple[str, ...]:
    """Return the names that words give, each a name or several with commas between them.

    A whole word is tried first. Otherwise it is split, and the parts of a known name are joined again, the longest name first.

    Args:
        words: The words.
        known: The names that exist. A part that matches none is returned as it is, for a message.
    """
    parts: list[str] = []
    for word in words:
        parts += [word] if word in known else [word.strip()] if word.strip() in known else split_names(word)
    if all(part in known for part in parts) and len(parts) == len(words):
        return tuple(parts)
    names = {_normalised(name): name for name in known}
    longest = 1 + max((name.count(",") for name in names), default=0)
    found: list[str] = []
    start = 0
    while start < len(parts):
        ends = range(min(start + longest, len(parts)), start, -1)
        end = next((end for end in ends if _normalised(",".join(parts[start:end])) in names), None)
        exact = end is None or (end == start + 1 and parts[start] in known)
        found.append(parts[start] if exact else names[_normalised(",".join(parts[start:end]))])
        start = end or start + 1
    return tuple(found)


def _normalised(name: str) -> str:
    """Return a name without the spaces around its commas, which splitting removes."""
    return re.sub(r"\s*,\s*", ",", name.strip())
