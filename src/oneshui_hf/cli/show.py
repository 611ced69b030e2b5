"""How results look to people, on stdout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runs import Run, read_json

SETS = ("retain", "forget", "val", "test")


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


def run(result: Run) -> None:
    """Tell where a run lies and what it is."""
    record = result.record
    what = {"original": "Original model", "oracle": "Oracle", "unlearned": "Unlearned model"}[record.kind]
    _print(f"{what}: {result.path}")
    if record.kind != "unlearned" and (history := record.report.get("history")):
        kept = history[(record.report.get("best_epoch") or len(history)) - 1]
        name = next(key for key in kept if key.startswith("val_"))
        score = f"{name.removeprefix('val_')} on val {kept[name]:.1f} %"
        _print(f"Epoch {kept['epoch']} of {record.report['epochs']}: {score}, loss on train {kept['train_loss']:.3f}.")
    if record.kind != "unlearned" and (shards := record.report.get("shards")):
        name = next(key for key in record.report if key.startswith("val_"))
        taken = len(shards) - record.report["shards_trained"]
        own = f", {taken} of them taken over from the original" if taken else ""
        _print(f"{len(shards)} shards{own}: {name.removeprefix('val_')} on val {record.report[name]:.1f} %.")
    if record.kind == "unlearned":
        report = record.report
        photos = f"{report['photos']} photo{'s' if report['photos'] != 1 else ''}"
        _print(f"{report['method']} on {photos} in {report['seconds']} s; labels {report['labels']}.")


def run_json(result: Run) -> dict[str, Any]:
    """Return a run as JSON."""
    import dataclasses

    return {"run": str(result.path), **dataclasses.asdict(result.record)}


def artefact(folder: Path | dict[str, Any]) -> None:
    """Tell where an artefact lies and what it cost, or what it would."""
    values = artefact_json(folder)
    if isinstance(folder, dict):
        photos = f"{values['forward']:,} photos forward, {values['backward']:,} differentiated"
        _print(f"Preparing {values['method']} would take about {values['seconds']} s ({photos}) and {values['bytes'] / 1e6:.1f} MB.")
        return
    _print(f"Prepared: {folder} ({values['bytes'] / 1e6:.1f} MB, {values['report']['seconds']} s)")


def artefact_json(folder: Path | dict[str, Any]) -> dict[str, Any]:
    """Return an artefact's header as JSON, or what it would cost."""
    if isinstance(folder, dict):
        return folder
    header = read_json(folder / "artefact.json")
    size = sum(file.stat().st_size for file in folder.iterdir())
    return {"artefact": str(folder), "bytes": size, "options": header["options"], "report": header["report"]}


BEST = 5  # settings shown of a search


def tuned(file: Path) -> None:
    """Print the best settings of a search, and how to use them."""
    from ..options import flag

    found = read_json(file)
    worked = [trial for trial in found["trials"] if trial["scores"] is not None]
    taken = next(trial for trial in worked if trial["scores"] == found["scores"])
    others = sorted((trial for trial in worked if trial is not taken), key=lambda trial: -trial["scores"]["tow"])
    rows = [("do nothing", found["nothing"])]
    for trial in [taken, *others[: BEST - 1]]:
        rows.append((" ".join(f"{flag(name)} {value}" for name, value in trial["values"].items()) or "the defaults", trial["scores"]))
    cells = [[words, *(f"{scores[name]:.1f}" for name in ("retain", "forget", "val", "tow"))] for words, scores in rows]
    table(["setting, the one taken first", "retain", "forget", "val", "ToW"], cells, "On simulated requests")
    if failed := len(found["trials"]) - len(worked):
        _print(f"{failed} of {len(found['trials'])} settings failed.")
    _print(f"Preset: {file} (use it with --preset {file})")


def tuned_json(file: Path) -> dict[str, Any]:
    """Return a preset as JSON."""
    return {"file": str(file), **read_json(file)}


def metrics(result: dict[str, Any]) -> None:
    """Print the metrics of one model, each with the way to read it."""
    score = result["score"]
    title = {"map": "mAP %", "accuracy": "accuracy %"}[score]
    rows = [
        [
            name,
            str(result[name]["images"]),
            str(result[name]["people"]),
            _with_ends(result[name][score], result["intervals"][name][score], 1),
            _number(result[name]["balanced_accuracy"], 1),
            _with_ends(result[name]["loss"], result["intervals"][name]["loss"], 3),
        ]
        for name in SETS
    ]
    table(["set", "images", "people", f"{title} [95 %]", "balanced acc. %", "loss [95 %]"], rows)
    left_out = {name: result[name].get("labels_left_out", 0) for name in SETS}
    if any(left_out.values()):
        words = ", ".join(f"{count} in {name}" for name, count in left_out.items() if count)
        _print(f"Labels without a positive, left out of the mean: {words}.")
    _print_comparison(result)
    _print_attacks(result["attacks"])
    if probe := result["probe"]:
        _print(
            f"Identity probe: who of {probe['people']} forgotten people is on a photo is read off the features in "
            f"{probe['balanced_accuracy']:.1f} % of cases (chance {100 / probe['people']:.1f}; compare with the oracle's)."
        )
    if back := result["relearning"]:
        steps = f"{back['steps']} steps" if back["steps"] is not None else f"more than {back['at_most']} steps"
        _print(f"Relearning: {steps} until the forget loss is back (compare with the oracle's; fewer means that knowledge is left).")
    _print("What these numbers cannot tell:")
    for sentence in result["cannot_tell"]:
        _print(f"- {sentence}")


def _print_comparison(result: dict[str, Any]) -> None:
    """Tell how near a model comes to the oracle."""
    if result["tow"] is None:
        _print("ToW and gap closure need an oracle: make one with `oneshui retrain`, name it with --oracle.")
        return
    ends, gap = result["intervals"], result["gap_closure"]
    if gap is None:
        closure = "unknown (original and oracle do not differ by more than noise)"
    else:
        closure = f"{_with_ends(gap, ends['gap_closure'], 2)} (0 is doing nothing, 1 is the oracle)"
    tow = _with_ends(result["tow"], ends["tow"], 1)
    _print(f"ToW {tow} (100 is the oracle; doing nothing can score high too). Gap closure {closure}.")
    near = result["to_oracle"]["forget"]
    _print(
        f"On forget, from the oracle: loss {_number(near['loss_gap'], 3)} apart (0 is ideal, below 0 is forgotten too little), "
        f"{_number(near['largest_loss_gap'], 3)} for the person furthest off; predictions {_number(near['jensen_shannon'], 4)} apart "
        "(Jensen-Shannon, 0 is ideal)."
    )
    if floor := result["noise_floor"]:
        _print(
            f"Noise floor, what another seed of the oracle changes: retain {_number(floor['retain'], 1)}, "
            f"forget {_number(floor['forget'], 1)}, test {_number(floor['test'], 1)} points, gap closure "
            f"{_number(floor.get('gap_closure'), 2)}; its ToW is {_number(floor['tow'], 1)}, the strongest attack on the oracle "
            f"itself {_number(floor['auc_either_way'], 3)}. Smaller differences say nothing."
        )


def _print_attacks(attacks: dict[str, Any]) -> None:
    """Print what each attacker achieves."""
    fprs = (0.1, 0.01)
    rows = []
    for name, attack in attacks.items():
        if name == "strongest":
            continue
        caught = [_number(attack["tpr"].get(str(fpr)), 2) for fpr in fprs]
        mark = " *" if name == attacks["strongest"] else ""
        rows.append(
            [
                name.replace("_", "-") + mark,
                _with_ends(attack["auc"], attack["interval"], 3),
                _number(attack["auc_either_way"], 3),
                _number(attack["balanced_accuracy"], 3),
                *caught,
            ]
        )
    columns = ["attack", "AUC [95 %]", "either way", "bal. acc.", *(f"TPR at {fpr:.0%}" for fpr in fprs)]
    table(columns, rows, "Can the forget photos be told from strangers'? AUC 0.5 is ideal, above and below betray")
    _print("* the strongest, by its AUC either way: of an attacker who may guess in both directions, for whom below 0.5 is chance.")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _with_ends(value: float | None, ends: Sequence[float] | None, digits: int) -> str:
    """Return a number with its interval, where it has one."""
    told = _number(value, digits)
    return f"{told} [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]" if ends else told


def comparison(rows: Sequence[dict[str, Any]], title: str) -> None:
    """Print one row a model: scores and losses of retain, forget and test, ToW, gap closure."""
    score = "map" if "map" in rows[0]["metrics"]["retain"] else "accuracy"
    name = {"map": "mAP", "accuracy": "acc."}[score]
    columns = [
        "model",
        *(f"{s} {what}" for s in ("retain", "forget", "test") for what in (name, "loss")),
        "ToW",
        "gap closure",
    ]
    cells = []
    for row in rows:
        measured = row["metrics"]
        numbers = [_number(measured[s][key], digits) for s in ("retain", "forget", "test") for key, digits in ((score, 1), ("loss", 3))]
        cells.append([row["model"], *numbers, _number(measured["tow"], 1), _number(measured["gap_closure"], 2)])
    table(columns, cells, title)


def demo(result: dict[str, Any]) -> None:
    """Print the demo's comparison, and what to do next."""
    comparison(result["rows"], "Forgetting generated people, one photo each")
    _print("ToW: 100 is the oracle. Gap closure: 0 is doing nothing, 1 is the oracle, on the forget set.")
    _print(f"The runs are in {result['folder']}/. Next: {result['next']}")


FINDINGS = {
    "rows_without_image": "annotated photos that are not there",
    "images_without_row": "photos without an annotation row",
    "images_without_identity": "photos without an identity",
    "near_duplicates_removed": "near-duplicates left out",
    "unreadable": "photos that cannot be read",
    "tiny": "photos smaller than 32 pixels a side",
    "not_rgb": "photos not in RGB (converted)",
    "single_image_identities": "people with one photo (never asked to forget)",
    "contradictory_labels": "people with a label both ways",
    "constant_labels": "labels that never vary",
    "exact_duplicates": "groups of equal files",
    "near_duplicates": "groups of near-duplicates",
    "duplicates_across_sets": "groups of duplicates across the split's sets",
}
EXAMPLES, NAMED = 2, 5  # in the table, and of photos that cannot be read
WIDTH = 72  # of the examples


def check(result: dict[str, Any]) -> None:
    """Print what was found in a data set."""
    spread = result["images_per_identity"]
    _print(
        f"{result['data']}: {result['images']:,} photos of {result['identities']:,} people, "
        f"{spread['min']:g} to {spread['max']:g} each (median {spread['median']:g})."
    )
    rows = []
    for key, words in FINDINGS.items():
        found = result.get(key)
        if found is None:
            continue
        across = [item for item in found if isinstance(item, dict) and len(item.get("identities", [])) > 1]
        if across:
            words += f", {len(across)} of them across people"
        more = ["..."] if len(found) > EXAMPLES else []
        rows.append([words, f"{len(found):,}", _cut("; ".join([*map(_example, (across or found)[:EXAMPLES]), *more]))])
    table(["finding", "how many", "for example"], rows, words=(0, 2))
    shares = sorted(result["class_balance"].items(), key=lambda item: item[1])
    named = shares if len(shares) <= 2 * EXAMPLES + 4 else [*shares[: EXAMPLES + 1], ("...", None), *shares[-EXAMPLES - 1 :]]
    _print("Share of photos: " + ", ".join(name if share is None else f"{name} {share:.1%}" for name, share in named) + ".")
    for item in result["unreadable"][:NAMED]:
        _print(f"{item['photo']} {item['reason']}")
    for note in [*result["notes"], *result.get("split_notes", [])]:
        _print(note)
    if not result["breaks"]:
        _print("Nothing found would break a run; --json lists everything by name.")


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"


def _example(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    if "photos" in item:
        return " = ".join(item["photos"][:3]) + (f" in {', '.join(item['sets'])}" if "sets" in item else "")
    if "label" in item:
        return f"{item['identity']} ({item['label']}: {item['values']['0']} no, {item['values']['1']} yes)"
    return str(item["photo"])


def breaks(result: dict[str, Any]) -> str | None:
    """Return what would break a run."""
    return " ".join(result["breaks"]) or None


def split(result: dict[str, Any]) -> None:
    """Print where a split lies and what is in it."""
    sets = ", ".join(f"{name} {result['images'][name]:,} photos of {count:,}" for name, count in result["people"].items())
    _print(f"Split: {result['split']} ({sets} people; {result['forget']} ask, {result['reserved']:,} photos reserved).")
    known = "; the published split" if result["published"] else ""
    _print(f"SHA-256 {result['sha256']}{known}")


def cache(result: dict[str, Any]) -> None:
    """Print what is kept in a cache."""
    entries = result["entries"]
    if not entries:
        _print(f"Nothing is kept in {result['cache']}.")
        return
    rows = []
    for entry in entries:
        about = {key: str(entry["about"].get(key, "")) for key in ("dataset", "method", "seed")}
        used = "now" if entry["locked"] else entry["last_used"].replace("T", " ")[:16]  # to the minute
        rows.append([entry["kind"], about["dataset"], about["method"], about["seed"], f"{entry['bytes'] / 1e6:,.1f}", used])
    table(["what", "data set", "method", "seed", "MB", "last used (UTC)"], rows, words=(0, 1, 2))
    _print(f"{len(entries)} in {result['cache']}, {sum(entry['bytes'] for entry in entries) / 1e6:,.1f} MB.")


def cleared(result: dict[str, Any]) -> None:
    """Tell what was removed from a cache."""
    done = "Would remove" if result["dry_run"] else "Removed"
    count = result["entries"]
    _print(f"{done} {count} entr{'y' if count == 1 else 'ies'} of {result['cache']}, {result['bytes'] / 1e6:,.1f} MB.")
    if result["in_use"]:
        _print(f"{result['in_use']} in use by another process, so left alone.")


def benchmark(result: dict[str, Any]) -> None:
    """Print a benchmark's tables and what is left of it, or its plan."""
    if "plan" in result:
        _print_plan(result)
        return
    for found in result["tables"]:
        table([head.replace(" ", "\n", 1) for head in found["columns"]], found["rows"], found["title"])
    _print("Means over seeds. †: no further from doing nothing than the noise floor. The tables in the folder have the intervals, too.")
    _print(f"{result['rows']} rows in {result['output']}/: results.csv, tables.md, tables.tex, costs.csv.")
    if result["missing"]:
        _print(f"{result['missing']} more are for other shards; the tables are complete when the last one has finished.")
    _print(f"Next: oneshui report {result['output']}")


def _print_plan(result: dict[str, Any]) -> None:
    """Print what a benchmark would do, a line a cell and then what it would take."""
    rows = [
        [
            row["dataset"],
            str(row["forget"]),
            str(row["seed"]),
            *(str(row[key]) for key in ("jobs", "done", "models_cached", "models_to_train")),
            _duration(row["seconds"], row["at_least"]),
            _number(row["peak_mb"], 0),
        ]
        for row in result["plan"]
    ]
    columns = ["data set", "people", "seed", "jobs", "done", "models there", "to train", "time", "peak MB"]
    table(columns, rows, f"{result['name']}: {result['jobs']} jobs, {result['done']} done")
    for note in result["notes"]:
        _print(note)
    if result["plan"]:
        _print(f"In all about {_duration(result['seconds'], result['at_least'])} on this machine.")


def _duration(seconds: float | None, at_least: bool) -> str:
    """Return a duration to read; "at least" where some of it is not known."""
    if seconds is None:
        return "-"
    told = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    return f"{told} or more" if at_least else told


def unfinished(result: dict[str, Any]) -> str | None:
    """Return what failed in a benchmark, or cannot be planned."""
    if problems := result.get("problems"):
        return " ".join(problems)
    failed = result.get("failed")
    if not failed:
        return None
    first = failed[0]
    where = f"{first['method']} on {first['dataset']}, {first['forget']} people, seed {first['seed']}"
    return f"{len(failed)} of {result['rows']} jobs failed; the first, {where}: {first['reason']} Try them again with --retry."


def report(result: dict[str, Any]) -> None:
    """Tell where a report lies."""
    _print(f"Report: {result['report']}")
    if figures := result["figures"]:
        _print(f"Figures: {Path(figures[0]).parent} ({len(figures)} SVG files)")


def link(url: str) -> None:
    """Tell where a run was published."""
    _print(f"Published: {url}")


def link_json(url: str) -> dict[str, str]:
    """Return the address as JSON."""
    return {"url": url}


def plugins(rows: Sequence[dict[str, Any]]) -> None:
    """List plugins."""
    for row in rows:
        if "error" in row:
            print(f"{row['name']}  [{row['from']}]\n    broken: {row['error']}")
        else:
            print(f"{row['name']}  [{row['from']}]\n    {row['summary']}\n    needs: {row['needs']}")


def method(about: dict[str, Any]) -> None:
    """Show a method and its options."""
    print(f"{about['name']}  [{about['from']}]\n{about['summary']}\npaper: {about['paper']}\nneeds: {about['needs']}")
    stages = {"prepare": "Options of `oneshui prepare`", "apply": "Options of `oneshui unlearn`"}
    for stage, title in stages.items():
        options = [option for option in about["options"] if option["at"] == stage]
        if options:
            print(f"\n{title}:")
        for option in options:
            bounds = [f"from {option['min']:g}"] if option["min"] is not None else []
            bounds += [f"to {option['max']:g}"] if option["max"] is not None else []
            bounds += [f"one of {', '.join(map(str, option['choices']))}"] if option["choices"] else []
            if search := option["search"]:
                bounds.append("searched" if search is True else f"searched from {search[0]:g} to {search[1]:g}")
            default = "none" if option["default"] is None else option["default"]
            name = option["option"]
            spelling = f"{name}/--no-{name[2:]}" if isinstance(option["default"], bool) else name
            print(f"  {spelling}  {option['help']} [{'; '.join([f'default {default}', *bounds])}]")
    if about["presets"]:
        print(f"\nPresets: {', '.join(about['presets'])}")
