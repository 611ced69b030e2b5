"""Compare the numbers of a study with the published ones, and list those that are off.

python tests/studies/check_study.py sequential FOUND.json

`docs/results/expected/studies.json` lists for each study its commands, the published file, and the tolerance of its numbers: the first
pattern that matches a number's name decides, and a number that none matches is not compared. The exit code is 1 if a number is off.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "docs" / "results"
STUDIES = RESULTS / "expected" / "studies.json"


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a JSON value with their names: keys and positions, joined by slashes."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from numbers(part, f"{name}/{key}" if name else str(key))
    elif isinstance(value, list):
        for place, part in enumerate(value):
            yield from numbers(part, f"{name}/{place}")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, float(value)


def off(found: Any, published: Any, tolerances: Mapping[str, float]) -> tuple[int, list[str]]:
    """Return how many numbers were compared, and a line for each that is missing or differs by more than its tolerance."""
    measured, compared, lines = dict(numbers(found)), 0, []
    for name, expected in numbers(published):
        tolerance = next((limit for pattern, limit in tolerances.items() if fnmatchcase(name, pattern)), None)
        if tolerance is None:
            continue
        compared += 1
        if name not in measured:
            lines.append(f"{name}: missing, expected {expected:.6g}")
        elif not abs(measured[name] - expected) <= tolerance:
            lines.append(f"{name}: {measured[name]:.6g}, expected {expected:.6g} within {tolerance:g}")
    return compared, lines


def main() -> int:
    studies = json.loads(STUDIES.read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=sorted(studies))
    parser.add_argument("found", type=Path)
    given = parser.parse_args()
    if not given.found.is_file():
        parser.error(f"there is no file {given.found}; name the JSON file that the study wrote")
    study = studies[given.study]
    found, published = (json.loads(file.read_text(encoding="utf-8")) for file in (given.found, RESULTS / study["published"]))
    compared, lines = off(found, published, study["tolerances"])
    sys.stdout.write("\n".join([*lines, f"{compared} numbers compared, {len(lines)} off."]) + "\n")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
