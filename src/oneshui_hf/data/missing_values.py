"""Words that tools write for a missing value."""

from __future__ import annotations

# What `pandas.read_csv` reads as missing by default, in lower case. No other text counts: -1 or "unknown" may be names.
MISSING = frozenset(
    ("", "#n/a", "#n/a n/a", "#na", "-1.#ind", "-1.#qnan", "-nan", "1.#ind", "1.#qnan", "<na>", "n/a", "na", "nan", "none", "null")
)
MISSING_LABELS = MISSING - {"na", "n/a", "none", "null"}  # these may be classes
