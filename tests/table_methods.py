"""A table of methods: prepare, unlearn and evaluate each on some runs, a process a command, and tell quality, seconds and peak memory.

    python tests/table_methods.py RUN [RUN ...] --methods ssd,pgu --presets DIR --rows rows.json
    python tests/table_methods.py --rows rows.json --markdown

Each run needs its oracle beside it (`oneshui retrain`) and is named <set>-<size>-<seed>. Its preset is DIR/<set>-<size>-<method>.json,
else DIR/<set>-<method>.json; without one its defaults are taken. Rows that are there are not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

SETS = ("retain", "forget", "test")


def oneshui(*words: object) -> tuple[dict[str, Any], int]:
    """Run a command and return what it prints and its peak memory in MB."""
    with tempfile.TemporaryFile("w+") as out:
        command = [sys.executable, "-m", "oneshui_hf", *map(str, words), "--json"]
        child = os.posix_spawn(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, out.fileno(), 1)])
        _, status, used = os.wait4(child, 0)
        if os.waitstatus_to_exitcode(status):
            raise SystemExit(f"{' '.join(command)} failed.")
        out.seek(0)
        return dict(json.load(out)), used.ru_maxrss // 1024


def preset_of(run: Path, method: str, presets: Path | None) -> list[str]:
    group, size, _ = run.name.rsplit("-", 2)
    files = [presets / f"{name}-{method}.json" for name in (f"{group}-{size}", group)] if presets else []
    return next((["--preset", str(file)] for file in files if file.exists()), [])


def row(run: Path, method: str, label: str, presets: Path | None, more: list[str]) -> dict[str, Any]:
    """Prepare where the method prepares, unlearn the split's request, evaluate."""
    about, _ = oneshui("methods", "show", method)
    preset, output = preset_of(run, method, presets), Path(f"{run}-{label}")
    found: dict[str, Any] = {"run": run.name, "method": label, "reads": about["needs"].partition("apply: ")[2], "preset": bool(preset)}
    if about["prepares"] == "required" or (about["prepares"] == "optional" and not has_length(preset)):
        artefact, memory = oneshui("prepare", "--run", run, "--method", method, "--overwrite", *preset, *more)
        found |= {"prepare_s": artefact["report"]["seconds"], "prepare_mb": memory, "artefact_mb": artefact["bytes"] / 1e6}
        more = []  # they are in the artefact
    unlearned, memory = oneshui(
        "unlearn", "--run", run, "--from-split", "--method", method, "--output-dir", output, "--overwrite", *preset, *more
    )
    found |= {"apply_s": unlearned["report"]["seconds"], "apply_mb": memory}
    return found | scores(output)


def has_length(preset: list[str]) -> bool:
    """Return whether a preset has the step's length, which is all that an optional preparation finds out."""
    return bool(preset) and "length" in json.loads(Path(preset[1]).read_text())["values"]


def scores(run: Path) -> dict[str, Any]:
    """Return what `evaluate` measures of a run."""
    metrics, _ = oneshui("evaluate", "--run", run, "--oracle", f"{original_of(run)}-oracle")
    name = "map" if "map" in metrics["retain"] else "accuracy"
    return {s: metrics[s][name] for s in SETS} | {"tow": metrics["tow"], "gap_closure": metrics["gap_closure"]}


def original_of(run: Path) -> str:
    parent = json.loads((run / "oneshui.json").read_text())["parent"]
    return str(parent["run"]) if parent else str(run)


KEYS = {"retain": 1, "forget": 1, "test": 1, "tow": 1, "gap_closure": 2}  # digits
COSTS = {"prepare_s": 0, "prepare_mb": 0, "artefact_mb": 1, "apply_s": 1, "apply_mb": 0}
HEAD = "| method | reads | retain | forget | test | ToW | gap closure | prepare s | MB | kept MB | apply s | MB |"
WRONG = "unrepaired-"  # what tests/unrepaired offers


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return two tables a set and size, means over seeds with their standard deviation: all methods; the repaired beside the wrong."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for found in rows:
        groups.setdefault(found["run"].rsplit("-", 1)[0], {}).setdefault(found["method"], []).append(found)
    told = []
    for group, methods in groups.items():
        runs = len({found["run"] for some in methods.values() for found in some})
        right = {name: some for name, some in methods.items() if not name.startswith(WRONG)}
        told += table(f"{group}, {runs} seed{'s' if runs > 1 else ''}", sorted(right.items(), key=order))
        pairs = [name for name in methods if WRONG + name in methods]
        told += table(f"{group}: what the repairs are worth", [(n, methods[n]) for name in pairs for n in (name, WRONG + name)])
    return "\n".join(told)


def table(title: str, methods: list[tuple[str, list[dict[str, Any]]]]) -> list[str]:
    if not methods:
        return []
    digits = KEYS | COSTS
    told = [f"### {title}", "", HEAD, f"|---|---|{'---:|' * len(digits)}"]
    for method, some in methods:
        cells = [method, some[0]["reads"], *(spread(some, key, places) for key, places in digits.items())]
        told.append(f"| {' | '.join(cells)} |")
    return [*told, ""]


def order(item: tuple[str, list[dict[str, Any]]]) -> tuple[int, float]:
    """Original and oracle first, then what needs the photos alone, then what reads training data; each by falling ToW."""
    name, rows = item
    reads = rows[0]["reads"]
    place = {"original": 0, "oracle": 1}.get(name, 3 if {"retain", "forget", "train"} & set(reads.split(", ")) else 2)
    return place, -statistics.mean(row["tow"] for row in rows)


def spread(rows: list[dict[str, Any]], key: str, digits: int) -> str:
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    several = len(values) > 1 and key in KEYS
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if several else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--methods", default="")
    parser.add_argument("--label", default="", help="name of the row, where it is not the method's")
    parser.add_argument("--presets", type=Path)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--markdown", action="store_true")
    options, more = parser.parse_known_args()
    rows = json.loads(options.rows.read_text()) if options.rows.exists() else []

    def keep(found: dict[str, Any]) -> None:
        rows.append(found)
        options.rows.write_text(json.dumps(rows, indent=1) + "\n")

    for run in options.runs:
        done = {found["method"] for found in rows if found["run"] == run.name}
        for name, place in (("original", run), ("oracle", Path(f"{run}-oracle"))):
            if name not in done:
                keep({"run": run.name, "method": name, "reads": "-"} | scores(place))
        for method in filter(None, options.methods.split(",")):
            label = options.label or method
            if label not in done:
                keep(row(run, method, label, options.presets, more))
    if options.markdown:
        print(markdown(rows))


if __name__ == "__main__":
    main()
