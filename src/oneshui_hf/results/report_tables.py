"""The tables of a report as text: headings, and lines under the title of their block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .aggregate import Line, Value, sections
from .table_columns import Column, format_fixed, get_nested, known_ends

SHOWN_GROUPS = 10  # of the groups of people, at most; those with the largest differences
DIFFERENCE_SCORES = {  # where they are found in `difference`, and their labels
    ("outputs", "loss_rise"): "loss rise",
    ("outputs", "logit_distance"): "distance of the logits",
    ("weights",): "weight difference",
}
SETS = {"retain": "Retain set", "test": "Unseen identities (test)"}

Context = dict[str, Any]


def table_context(lines: Sequence[Line], columns: Mapping[str, Column], score: str) -> Context:
    """Return the table of some lines, by block."""
    ideals = {"up": "higher is better", "oracle": "the oracle's value is ideal", "": ""}
    heads = [(column.heading(score), ideals.get(column.ideal, f"{column.ideal} is ideal")) for column in columns.values()]
    blocks = [{"title": _block_title(part[0]), "lines": [_line_context(line, columns) for line in part]} for part in sections(lines)]
    return {"heads": heads, "blocks": blocks, "collapsed": any(line.collapsed for line in lines)}


def _block_title(line: Line) -> str:
    if line.row != "method":
        return "For comparison"
    return (
        "Methods that also read training data at request time" if line.is_upper_reference else "Methods that read the support image alone"
    )


def _line_context(line: Line, columns: Mapping[str, Column]) -> Context:
    seeds = f"{line.done} of {line.seeds} seeds" if 0 < line.done < line.seeds else ""
    note = "; ".join(filter(None, (seeds, "unchanged: the original" if line.unchanged else "")))
    cells = [_cell_context(line.values[name], column.decimals) for name, column in columns.items()]
    return _plain_line(line.label, cells) | {"note": note, "failed": not line.done, "collapsed": line.collapsed}


def _plain_table(heads: Sequence[tuple[str, str]], blocks: Sequence[Context]) -> Context:
    return {"heads": heads, "blocks": blocks, "collapsed": False}


def _plain_line(label: str, cells: Sequence[Context]) -> Context:
    return {"label": label, "note": "", "failed": False, "collapsed": False, "cells": cells}


def _cell_context(value: Value, decimals: int) -> Context:
    if value.mean is None:
        return {"text": "-", "sort": "", "interval": "", "note": "", "within": False}
    mean, *ends = (
        format_fixed(end, decimals).replace("-", "\N{MINUS SIGN}") for end in (value.mean, value.low, value.high) if end is not None
    )
    text = {"text": value.prefix + mean, "sort": f"{value.mean:.10g}", "interval": " to ".join(ends)}
    return text | {"note": value.note, "within": bool(value.within_floor)}


def _number(value: float | None, decimals: int, interval: Any = None, note: str = "") -> Context:
    """Return the cell of a number of a single model."""
    low, high = known_ends(interval) or (None, None)
    return _cell_context(Value(value, low, high, note=note), decimals)


def _percent(value: float | None) -> Context:
    return _number(None if value is None else 100 * value, 0)


def difference_context(metrics: Mapping[str, Any]) -> Context | None:
    """Return the section on the difference of the two models: the attacks on it, the same on the oracle's, and the range attack on people.

    Args:
        metrics: Of a run, as `load.load_run` returns them.

    Returns:
        None where neither was measured.
    """
    found, person_level = metrics["difference"], metrics["person_level"]
    if not found and not person_level:
        return None
    heads = [
        ("photos: AUC against retain", "0.5 is chance"),
        ("photos: AUC against test", "0.5 is chance"),
        ("people: AUC against retain", "0.5 is chance"),
        ("people: AUC against test", "0.5 is chance"),
        ("owner rank", _chance_of_rank(found)),
        ("owner rank, support photo", ""),
        ("rank 1, % of people", ""),
        ("forgotten among the first k, %", "k forgotten people"),
    ]
    models = (("This model", found), ("Oracle, for comparison: retraining changes a model, too", get_nested(found, "oracle")))
    blocks = [{"title": title, "lines": list(_difference_lines(entry))} for title, entry in models if entry]
    levels = {which: entry for which, entry in (("model", person_level), ("oracle", get_nested(person_level, "oracle"))) if entry}
    return {
        "table": _plain_table(heads, blocks) if blocks else None,
        "people": get_nested(found, "outputs", "loss_rise", "owner", "people"),
        "person_level": {which: _number(entry["auc"], 3, entry["interval"]) for which, entry in levels.items()},
        "unseen": get_nested(person_level, "unseen_people"),
    }


def _chance_of_rank(found: Mapping[str, Any] | None) -> str:
    candidates = get_nested(found, "outputs", "loss_rise", "owner", "candidates")
    return "" if candidates is None else f"1 to {candidates:.0f}, chance {(candidates + 1) / 2:g}"


def _difference_lines(entry: Mapping[str, Any]) -> Iterator[Context]:
    for keys, label in DIFFERENCE_SCORES.items():
        if score := get_nested(entry, *keys):
            owner, intervals = score["owner"] or {}, get_nested(score, "owner", "intervals") or {}
            aucs = [get_nested(score, of, name) or {} for of in ("photos", "people") for name in SETS]
            yield _plain_line(
                label,
                [
                    *(_number(of.get("auc"), 3, of.get("interval")) for of in aucs),
                    *(_number(owner.get(rank), 1, intervals.get(rank)) for rank in ("rank", "support_rank")),
                    *(_percent(owner.get(share)) for share in ("rank_1_share", "batch_share")),
                ],
            )


def bystander_context(found: Mapping[str, Any] | None) -> Context | None:
    """Return the section on people who are not forgotten: the changes of both sets, and the groups that differ most; None if unmeasured.

    Args:
        found: `bystanders` of a run's metrics.
    """
    if not found:
        return None
    heads = [
        ("people", ""),
        ("loss change, mean", "0 is ideal"),
        ("standard deviation", ""),
        ("mean of the worst tenth", ""),
        ("largest", ""),
        ("beyond the oracle's spread, %", ""),
        ("exposure change, mean", "0 is ideal"),
        ("exposure, worst tenth", ""),
    ]
    models = {"this model": found, "oracle": found["oracle"] or {}}
    blocks = [
        {"title": title, "lines": [_plain_line(label, _change_cells(of[name])) for label, of in models.items() if of.get(name)]}
        for name, title in SETS.items()
    ]
    groups = found["groups"] or {"retain": [], "test": [], "left_out": 0}
    return {
        "table": _plain_table(heads, [block for block in blocks if block["lines"]]),
        "groups": _group_table(groups),
        "left_out": groups["left_out"],
        "differ": sum(bool(one["differs"]) for name in SETS for one in groups[name]),
        "compared": sum(len(groups[name]) for name in SETS),
    }


def _change_cells(of_set: Mapping[str, Any]) -> list[Context]:
    loss, exposure = of_set["loss_change"] or {}, of_set["exposure_change"] or {}
    return [
        _number(of_set["people"], 0),
        *(_number(loss.get(name), 3) for name in ("mean", "sd", "worst_tenth", "largest")),
        _percent(of_set["beyond_spread"]),
        *(_number(exposure.get(name), 3) for name in ("mean", "worst_tenth")),
    ]


def _group_table(groups: Mapping[str, Any]) -> Context | None:
    """Return the groups with the largest differences of both sets; None without any."""
    ordered = sorted(((name, one) for name in SETS for one in groups[name]), key=lambda pair: -abs(pair[1]["difference"] or 0.0))
    shown = ordered[:SHOWN_GROUPS]
    heads = [("people with it", ""), ("people without it", ""), ("loss change with minus without", "0 is ideal"), ("the oracle's", "")]
    heads.append(("verdict", ""))
    blocks = []
    for name, title in SETS.items():
        lines = [
            _plain_line(
                one["name"] or f"label {one['label']}",
                [
                    _number(one["people_with"], 0),
                    _number(one["people_without"], 0),
                    _number(one["difference"], 3, one["interval"]),
                    _number(one["oracle"], 3),
                    _number(None, 0) | {"text": _verdict(one)},
                ],
            )
            for of, one in shown
            if of == name
        ]
        blocks += [{"title": title, "lines": lines}] if lines else []
    return _plain_table(heads, blocks) if blocks else None


def _verdict(group: Mapping[str, Any]) -> str:
    """Return which side of a group loses more; a difference that may be chance has none."""
    if not group["differs"]:
        return "no difference shown"
    return "with it lose more" if group["difference"] > 0 else "without it lose more"
