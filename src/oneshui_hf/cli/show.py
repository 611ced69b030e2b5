"""How runs, caches, plugins and predictions are printed on stdout."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..options import flag
from ..runs import Run, read_json
from ..sets import EVALUATED
from ..stages.command_options import DEFAULT_METHOD
from ..stages.requests.verdict import photo_line
from ..stages.unseen_range import judged
from .printing import megabytes, number, print_indented, print_line, table

KIND = {"original": "Original model", "oracle": "Oracle", "unlearned": "Unlearned model"}
LABELS = {"guessed by the model": "predicted by the model"}  # how receipts name them, and how they are printed
BEST = 5  # settings of a search that are printed
SITUATIONS = {
    "exact by design": "nothing of what remains comes from the person's photos.",
    "prepared by name": "an update per person, added when the request names them.",
    "photo alone": "the update is computed from the image; the person may be unknown.",
    "training data": "read at request time, so for comparison; only with --from-split.",
    "baseline": "for comparison.",
}
SCORE_NAMES = {"map": "mAP", "accuracy": "accuracy"}


def run(result: Run) -> None:
    """Print the path of a new run and its main figures."""
    record = result.record
    print_line(f"{KIND[record.kind]}: {result.path}")
    if record.kind == "unlearned":
        report = record.report
        images = f"{report['photos']} image{'s' if report['photos'] != 1 else ''}"
        print_line(f"{report['method']} on {images} in {report['seconds']} s; labels {LABELS.get(report['labels'], report['labels'])}.")
        for row in _support_images(report):
            print_line(photo_line(row))
        return
    if history := record.report.get("history"):
        kept = history[(record.report.get("best_epoch") or len(history)) - 1]
        score = "".join(f"{text}, " for text in _val_scores(kept))
        print_line(f"Epoch {kept['epoch']} of {record.report['epochs']}: {score}training loss {kept['train_loss']:.3f}.")
    if shards := record.report.get("shards"):
        reused = len(shards) - record.report["shards_trained"]
        note = f", {reused} of them from the original" if reused else ""
        score = "".join(f": {text}" for text in _val_scores(record.report))
        print_line(f"{len(shards)} shards{note}{score}.")
    if features := record.report.get("features"):
        score = "".join(f"; {text}" for text in _val_scores(record.report))
        print_line(f"Head in closed form from {record.report['rows']:,} rows of {features:,} features{score}.")


def _val_scores(values: Mapping[str, Any]) -> list[str]:
    """Return the score on val as a text; nothing where no label varies on val, so that it has no score."""
    scores = {name.removeprefix("val_"): value for name, value in values.items() if name.startswith("val_")}
    return [f"val {SCORE_NAMES.get(name, name)} {value:.1f} %" for name, value in scores.items()]


def run_json(result: Run) -> dict[str, Any]:
    """Return a run as JSON."""
    support = {"support": found} if (found := _support_images(result.record.report)) else {}
    return {"run": str(result.path), **dataclasses.asdict(result.record), **support}


def _support_images(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what is known of each support image: its loss before and after, the range of unseen identities, the verdict."""
    return [judged(report, place) for place in range(report["photos"] if report.get("source", "split") != "split" else 0)]


def runs(rows: Sequence[dict[str, Any]]) -> None:
    """Print one row per run."""
    if not rows:
        print_line("There are no runs in this folder; `oneshui train` creates one.")
        return
    cells = [
        [
            row["run"],
            row["method"] or row["kind"],
            str(row["dataset"]),
            str(row["seed"]),
            number(row["tow"], 1),
            row["state"],
            row["changed"].replace("T", " ")[:16],  # to the minute
        ]
        for row in rows
        if "error" not in row
    ]
    table(["run", "model", "data set", "seed", "ToW", "state", "changed (UTC)"], cells, text=(0, 1, 2, 5, 6))
    for row in rows:
        if "error" in row:
            print_line(f"Unreadable: {row['error']}")


def details(about: dict[str, Any]) -> None:
    """Print what a run is, what it was made from, its scores and its prepared methods."""
    data, epoch = about["dataset"], about["epoch"]
    labels = _count(None if data["labels"] is None else len(data["labels"]))
    lines = {
        "Kind": KIND[about["kind"]] + ("" if about["state"] == "complete" else ", training has not finished"),
        "Data": f"{data['name']}: {_count(data['images'])} images of {_count(data['identities'])} identities, {labels} labels",
        "Seed": str(about["seed"]),
    }
    if parent := about["parent"]:
        lines["Made from"] = str(parent.get("run") or f"a model with weights {str(parent.get('weights'))[:12]}")
    if request := about["request"]:
        source = LABELS.get(request["labels"], request["labels"])
        lines["Request"] = f"{request['method']}, {request['photos']} support images, labels {source}, {request['seconds']} s"
    elif epoch:
        loss = f"training loss {epoch['train_loss']:.3f}"
        lines["Epoch"] = f"{epoch['epoch']} ({', '.join([loss, *_val_scores(epoch)])})"
    if split := about["split"]:
        lines["Sets"] = ", ".join(f"{name} {count:,}" for name, count in split.get("images", {}).items())
    if presets := about["tuned"]:
        lines["Presets"] = ", ".join(presets)
    if not about["files"]["weights"]:
        lines["Weights"] = "not kept; its predictions are"
    print_line(about["run"])
    for name, line in lines.items():
        print_line(f"  {name + ':':<11}{line}")
    if scores := about["scores"]:
        score = scores["score"]
        heads = [f"{name} {SCORE_NAMES.get(score, score)}" for name in EVALUATED]
        cells = [number((scores[name] or {}).get(score), 1) for name in EVALUATED]
        table([*heads, "ToW", "gap closure"], [[*cells, number(scores["tow"], 1), number(scores["gap_closure"], 2)]], text=())
    else:
        print_line("  Not evaluated; `oneshui evaluate` measures it.")
    if prepared := about["prepared"]:
        sizes = [[str(row["method"]), megabytes(row["bytes"]), number(row.get("seconds"), 1)] for row in prepared]
        table(["prepared method", "size", "seconds"], sizes)


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def artefact(folder: Path | dict[str, Any]) -> None:
    """Print the folder and cost of an artefact, or the estimated cost."""
    values = artefact_json(folder)
    if isinstance(folder, dict):
        images = f"{values['forward']:,} images forward, {values['backward']:,} forward and backward"
        if values["trainings"]:
            images = f"{values['trainings']} trainings by the run's recipe, {images}"
        if values["simulated_requests"]:
            images += f"; {values['simulated_requests']} simulated requests, {values['simulation_forward']:,} images forward"
        memory = f" on disk, {megabytes(values['memory'])} of memory besides the model" if values["memory"] else ""
        size = f"{megabytes(values['bytes'])}{memory}"
        print_line(f"Estimated cost of preparing {values['method']}: {values['seconds']:.1f} s ({images}), {size}.")
        return
    print_line(f"Prepared: {folder} ({megabytes(values['bytes'])}, {values['report']['seconds']} s)")


def artefact_json(folder: Path | dict[str, Any]) -> dict[str, Any]:
    """Return an artefact's header as JSON, or the estimated cost."""
    if isinstance(folder, dict):
        return folder
    header = read_json(folder / "artefact.json")
    size = sum(file.stat().st_size for file in folder.iterdir())
    return {"artefact": str(folder), "bytes": size, "options": header["options"], "report": header["report"]}


def tuned(file: Path) -> None:
    """Print the best settings of a search and how to use them."""
    found = read_json(file)
    scored = [trial for trial in found["trials"] if trial["scores"] is not None]
    best = next(trial for trial in scored if trial["scores"] == found["scores"])
    others = sorted((trial for trial in scored if trial is not best), key=lambda trial: -trial["scores"]["tow"])
    rows = [("do nothing", found["nothing"])]
    for trial in [best, *others[: BEST - 1]]:
        rows.append((" ".join(f"{flag(name)} {value}" for name, value in trial["values"].items()) or "defaults", trial["scores"]))
    cells = [[setting, *(f"{scores[name]:.1f}" for name in ("retain", "forget", "val", "tow"))] for setting, scores in rows]
    table(["setting, the best first", "retain", "forget", "val", "ToW"], cells, "On simulated requests")
    if failed := len(found["trials"]) - len(scored):
        print_line(f"{failed} of {len(found['trials'])} settings failed.")
    print_line(f"Preset: {file} (use it with --preset {file})")


def tuned_json(file: Path) -> dict[str, Any]:
    """Return a preset as JSON."""
    return {"file": str(file), **read_json(file)}


def address(result: Mapping[str, Any]) -> None:
    """Print that the page is closed."""
    print_line(f"The page at {result['address']} is closed.")


def predictions(found: Sequence[dict[str, Any]]) -> None:
    """Print the most probable labels of each image."""
    for row in found:
        labels = ", ".join(f"{prediction['label']} {prediction['probability']:.1%}" for prediction in row["predictions"])
        print_line(f"{row['image']}: {labels}")


def cache(result: dict[str, Any]) -> None:
    """Print the entries of a cache."""
    entries = result["entries"]
    if not entries:
        print_line(f"The cache {result['cache']} is empty.")
        return
    rows = []
    for entry in entries:
        about = {key: str(entry["about"].get(key, "")) for key in ("dataset", "method", "seed")}
        used = "now" if entry["locked"] else entry["last_used"].replace("T", " ")[:16]  # to the minute
        rows.append([entry["kind"], about["dataset"], about["method"], about["seed"], f"{entry['bytes'] / 1e6:,.1f}", used])
    table(["entry", "data set", "method", "seed", "MB", "last used (UTC)"], rows, text=(0, 1, 2))
    print_line(f"{len(entries)} entries in {result['cache']}, {megabytes(sum(entry['bytes'] for entry in entries))}.")


def cleared(result: dict[str, Any]) -> None:
    """Print what was removed from a cache."""
    done = "Would remove" if result["dry_run"] else "Removed"
    count = result["entries"]
    print_line(f"{done} {count} entr{'y' if count == 1 else 'ies'} of {result['cache']}, {megabytes(result['bytes'])}.")
    if result["in_use"]:
        print_line(f"{result['in_use']} in use by another process, not removed.")


def environment(about: dict[str, Any]) -> None:
    """Print versions, devices and disk use."""
    print_line(f"Python {about['python']}, {about['system']}")
    print_line("Devices: " + "; ".join(about["devices"]))
    table(["package", "version"], [[name, version or "not installed"] for name, version in about["versions"].items()], text=(0, 1))
    table(["data", "files", "size"], [[row["folder"], f"{row['files']:,}", megabytes(row["bytes"])] for row in about["data"]])
    print_line("Plugins: " + (", ".join(about["plugins"]) or "none"))
    print_line("Environment variables that are set: " + (", ".join(about["variables"]) or "none"))


def link(url: str) -> None:
    """Print the address of a published run."""
    print_line(f"Published: {url}")


def link_json(url: str) -> dict[str, str]:
    """Return the address as JSON."""
    return {"url": url}


def methods(rows: Sequence[dict[str, Any]]) -> None:
    """Print the methods by situation, those that `oneshui unlearn` prefers first, then those that cannot be loaded."""
    for situation, meaning in SITUATIONS.items():
        if found := [row for row in rows if row.get("situation") == situation]:
            print_line(f"{situation.capitalize()}: {meaning}")
            print_line("")
            plugins(found)
            print_line("")
    plugins([row for row in rows if "error" in row])
    print_line("Without --method, `oneshui unlearn` takes what the run has prepared:")
    print_line(f"an exact method, else one prepared by name, else {DEFAULT_METHOD}.")


def plugins(rows: Sequence[dict[str, Any]]) -> None:
    """Print one entry per plugin."""
    for row in rows:
        print_line(f"{row['name']}  [{row['from']}]")
        optional = " (preparation is optional)" if row.get("prepares") == "optional" else ""
        for line in [f"broken: {row['error']}"] if "error" in row else [row["summary"], f"needs: {row['needs']}{optional}"]:
            print_indented(line)


def method(about: dict[str, Any]) -> None:
    """Print a method and its options."""
    for line in (f"{about['name']}  [{about['from']}]", about["summary"]):
        print_line(line)
    for key in ("situation", "paper", "needs"):
        print_line(f"{key}: {about[key]}")
    steps = {"prepare": "Options of `oneshui prepare`", "apply": "Options of `oneshui unlearn`"}
    for step, title in steps.items():
        options = [option for option in about["options"] if option["at"] == step]
        if options:
            print_line("")
            print_line(f"{title}:")
        for option in options:
            bounds = [f"from {option['min']:g}"] if option["min"] is not None else []
            bounds += [f"to {option['max']:g}"] if option["max"] is not None else []
            bounds += [f"one of {', '.join(map(str, option['choices']))}"] if option["choices"] else []
            if search := option["search"]:
                bounds.append("searched" if search is True else f"searched from {search[0]:g} to {search[1]:g}")
            default = "none" if option["default"] is None else option["default"]
            name = option["option"]
            spelling = f"{name}/--no-{name[2:]}" if isinstance(option["default"], bool) else name
            print_line(f"  {spelling}  {option['help']} [{'; '.join([f'default {default}', *bounds])}]")
    if about["presets"]:
        print_line("")
        print_line(f"Presets: {', '.join(about['presets'])}")
