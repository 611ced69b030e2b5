"""JSON texts of bounded size and depth, from files that others may have written."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_BYTES = 256 * 2**20  # a split of a million photos has 100 MB
MAX_DEPTH = 64
MAX_INTEGER = 2**63


def parse_json(data: bytes) -> Any:
    """Return the value of a JSON text.

    It has at most `MAX_BYTES` and `MAX_DEPTH`, no NaN and no infinity, no integer of more than 64 bits, and only text that can be written
    again.

    Raises:
        ValueError: It is not such a text.
        RecursionError: It is nested too deeply for Python.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES // 2**20} MB")
    value = json.loads(data.decode())
    level, depth = [value], 0
    while level:
        if (depth := depth + 1) > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
        for item in level:
            if isinstance(item, float) and not math.isfinite(item):
                raise ValueError("it contains NaN or an infinite number")
            if isinstance(item, int) and abs(item) > MAX_INTEGER:
                raise ValueError("it contains an integer of more than 64 bits")
        level = [inner for item in level if isinstance(item, dict | list) for inner in (item.values() if isinstance(item, dict) else item)]
    if b"\\u" in data:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()  # refuses a half of a surrogate pair
        if "\\u0000" in text:
            raise ValueError("it contains text with the character NUL")
    return value
