"""How results look to people, on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runs import Run, read_json
from .printing import _print, table


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
