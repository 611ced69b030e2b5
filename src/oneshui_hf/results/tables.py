"""The tables of a benchmark as text: CSV, Markdown, LaTeX. Pure functions: the same rows in any order give the same bytes."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..metrics import collapse
from ..printable import csv_cell, escape_markdown, printable
from ..sets import PREDICTED
from .aggregate import Group, Line, Row, Value, row_name, sections, sort_rows, with_collapse
from .table_columns import COLUMNS, MARK, format_fixed, get_nested

SET_NUMBERS = ("images", "people", "loss", "map", "accuracy", "balanced_accuracy", "labels_left_out")
ATTACK_NUMBERS = ("auc", "auc_either_way", "balanced_accuracy", "smallest_fpr")
GROUP_NUMBERS = ("people_with", "people_without", "difference", "p_value")
COSTS = ("prepare_s", "prepare_mb", "apply_s", "apply_mb", "kept_mb")
NOISE_FLOOR = "Noise floor: an oracle of another seed compared with the oracle, as a difference (±) or as a value."
NO_FLOOR = "The noise floor is unknown, so no method can be distinguished from doing nothing."
WITH_INTERVAL = ("auc", "recovery", "value")  # the entry "interval" next to one of these is its own
UPPER_REFERENCES = "Upper references: methods that read training data at request time"


def tidy_csv(rows: Sequence[Row]) -> str:
    """Return all numbers as tidy CSV, one per line: dataset, forget, seed, method, reads, set, metric, value, low, high, collapsed.

    Lines are sorted by data set, request, seed and row (do nothing, noise floor, oracle, methods by name), then by a fixed order of
    metrics. An unknown value is empty. A failed row has one line: metric "failed", value 1. `collapsed` is 1 in all lines of a model that
    collapsed, and 0 in those of another. Text that begins like a formula of a spreadsheet has an apostrophe in front.
    """
    header = ("dataset", "forget", "seed", "method", "reads", "set", "metric", "value", "low", "high", "collapsed")
    lines: list[Sequence[Any]] = []
    for row in sort_rows(with_collapse(rows)):
        key = (row["dataset"], row["forget"], row["seed"], row_name(row), " ".join(sorted(row["reads"])))
        numbers = _numbers(row["metrics"]) if row["state"] == "done" else [("", "failed", 1, None)]
        collapsed = get_nested(row["metrics"], "collapse", "collapsed")
        for name, metric, value, interval in numbers:
            found = (value, *(interval or (None, None)), None if collapsed is None else int(collapsed))
            lines.append((*map(csv_cell, (*key, name, metric)), *map(_digits, found)))
    return _csv(header, lines)


def named_numbers(metrics: Row) -> dict[str, Any]:
    """Return all numbers of a model by name: SET.METRIC, or METRIC where it is of no set, as in the columns of `tidy_csv`."""
    return {f"{of_set}.{metric}" if of_set else metric: value for of_set, metric, value, _ in _numbers(metrics)}


def costs_csv(rows: Sequence[Row]) -> str:
    """Return the cost of each row as CSV: seconds and megabytes, which differ from run to run."""
    costs = [(row["dataset"], row["forget"], row["seed"], row_name(row), row.get("cost") or {}) for row in sort_rows(rows)]
    lines = [(*map(csv_cell, key), *(_digits(cost.get(name)) for name in COSTS)) for *key, cost in costs if cost]
    return _csv(("dataset", "forget", "seed", "method", *COSTS), lines)


def markdown(groups: Sequence[Group]) -> str:
    """Return the tables as Markdown, with a legend."""
    parts = []
    for group in groups:
        lines = [_headings(group), ["---"] + ["---:"] * len(group.columns)]
        for section in sections(group.lines):
            if section[0].is_upper_reference:
                lines.append([f"*{UPPER_REFERENCES}*"] + [""] * len(group.columns))
            for line in section:
                label, *cells = _format_line(line, group)
                lines.append(_bold(line, group, [escape_markdown(label), *cells], "**{}**"))
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        parts.append(f"## {escape_markdown(_title(group))}\n\n{table}\n")
    return "\n".join([*parts, f"{_legend(groups)}\n"])


def terminal_tables(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return the tables without intervals, which fit a terminal, as `title`, `columns` and `rows` of texts, and a `note`."""
    return [
        {
            "title": _title(group),
            "columns": _headings(group),
            "rows": [_format_line(line, group, with_intervals=False) for section in sections(group.lines) for line in section],
            "note": _collapse_note([group]),
        }
        for group in groups
    ]


def latex(groups: Sequence[Group]) -> str:
    """Return the tables as LaTeX for the package booktabs, each with a caption and a label `tab:oneshui-DATASET-FORGET`."""
    parts, used = ["% \\usepackage{booktabs}\n"], set[str]()
    for group in groups:
        body = []
        for section in sections(group.lines):
            lines = [_bold(line, group, [_escape_latex(text) for text in _format_line(line, group)], r"\textbf{{{}}}") for line in section]
            note = (
                [rf"\multicolumn{{{len(group.columns) + 1}}}{{l}}{{\emph{{{UPPER_REFERENCES}}}}} \\"]
                if section[0].is_upper_reference
                else []
            )
            body.append("\n".join([*note, *(f"{' & '.join(cells)} \\\\" for cells in lines)]))
        headings = " & ".join(map(_escape_latex, _headings(group)))
        caption = f"{_title(group)}. {_legend([group])}"
        table = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escape_latex(caption)}}}",
            rf"\label{{{_key(group, used)}}}",
            rf"\begin{{tabular}}{{l{'r' * len(group.columns)}}}",
            r"\toprule",
            rf"{headings} \\",
            r"\midrule",
            "\n\\midrule\n".join(body),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        parts.append("\n".join(table) + "\n")
    return "\n".join(parts)


def _numbers(metrics: Row) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield (set, metric, value, interval) of all metrics."""
    intervals = metrics.get("intervals") or {}
    for name in PREDICTED:
        for metric in SET_NUMBERS:
            if metric in (metrics.get(name) or {}):
                yield name, metric, metrics[name][metric], get_nested(intervals, name, metric)
    for metric in ("tow", "gap_closure"):
        yield "", metric, metrics.get(metric), intervals.get(metric)
    for name in PREDICTED:
        for metric, value in sorted((get_nested(metrics, "to_oracle", name) or {}).items()):
            yield name, f"to_oracle.{metric}", value, None
    attacks = metrics.get("attacks") or {}
    for name in sorted(key for key in attacks if isinstance(attacks[key], Mapping)):
        for metric in ATTACK_NUMBERS:
            yield "", f"attack.{name}.{metric}", attacks[name].get(metric), attacks[name].get("interval") if metric == "auc" else None
        for fpr, rate in sorted((attacks[name].get("tpr") or {}).items(), key=lambda pair: -float(pair[0])):
            yield "", f"attack.{name}.tpr_at_{fpr}", rate, None
    yield "", "attack.strongest.auc_either_way", get_nested(attacks, str(attacks.get("strongest")), "auc_either_way"), None
    for part in ("probe", "relearning"):
        for metric, value in sorted((metrics.get(part) or {}).items()):
            yield "", f"{part}.{metric}", value, None
    for part in ("person_level", "difference"):
        yield from _nested_numbers(part, metrics.get(part))
    bystanders = metrics.get("bystanders") or {}
    yield from _nested_numbers("bystanders", {name: found for name, found in bystanders.items() if name != "groups"})
    yield from _group_numbers(bystanders.get("groups") or {})
    further = metrics.get("further") or {}
    yield from _nested_numbers("further", {name: found for name, found in further.items() if name != "not_run"})
    for name in collapse.WATCHED:
        if (drop := get_nested(metrics, "collapse", name, "drop")) is not None:
            yield name, "collapse.drop", drop, None
            yield name, "collapse.limit", metrics["collapse"][name]["limit"], None
    for metric, value in sorted((metrics.get("noise_floor") or {}).items()):
        yield (metric, "noise_floor", value, None) if metric in PREDICTED else ("", f"noise_floor.{metric}", value, None)


def _nested_numbers(path: str, found: Any) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield the numbers of nested mappings, each under its path, without those of the oracle, which has its own row. Lists are numbered."""
    if not isinstance(found, Mapping):
        return
    for key, value in sorted(found.items()):
        if isinstance(value, Mapping):
            if key not in ("oracle", "intervals"):
                yield from _nested_numbers(f"{path}.{key}", value)
        elif isinstance(value, list) and not key.endswith("interval"):
            yield from (("", f"{path}.{key}.{number}", one, None) for number, one in enumerate(value))
        elif not key.endswith("interval"):
            own = found.get("interval") if key in WITH_INTERVAL else found.get(f"{key}_interval")
            yield "", f"{path}.{key}", value, own or get_nested(found, "intervals", key)


def _group_numbers(groups: Mapping[str, Any]) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield the numbers of groups of bystanders, each under the set and the name of its label, and how many groups were left out."""
    for name in ("retain", "test"):
        for group in sorted(groups.get(name) or [], key=lambda one: one["label"]):
            path = f"bystanders.groups.{name}.{group['label'] if group['name'] is None else group['name']}"
            yield from (("", f"{path}.{key}", group[key], group["interval"] if key == "difference" else None) for key in GROUP_NUMBERS)
    if "left_out" in groups:
        yield "", "bystanders.groups.left_out", groups["left_out"], None


def _digits(value: Any) -> str:
    """Return a number with up to ten digits; empty where it is unknown."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.10g}" if isinstance(value, float) else str(value) if isinstance(value, int) else str(csv_cell(str(value)))


def _csv(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue()


def _headings(group: Group) -> list[str]:
    columns = [COLUMNS[name] for name in group.columns]
    return ["method", *(f"{column.heading(group.score)} {'↑' if column.ideal == 'up' else f'→ {column.ideal}'}" for column in columns)]


def _format_line(line: Line, group: Group, *, with_intervals: bool = True) -> list[str]:
    """Return the cells of a line as text, its label first."""
    label = line.label + collapse.MARK * line.collapsed
    label += "" if line.done == line.seeds else f" ({line.done} of {line.seeds} seeds)"
    if not line.done:
        return [label, "failed", *["-"] * (len(group.columns) - 1)]
    return [label, *(_format_value(line.values[column], COLUMNS[column].decimals, with_intervals) for column in group.columns)]


def _format_value(value: Value, decimals: int, with_interval: bool) -> str:
    if value.mean is None:
        return "-"
    text = value.prefix + format_fixed(value.mean, decimals)
    if with_interval and value.low is not None and value.high is not None:
        interval = f"[{format_fixed(value.low, decimals)}, {format_fixed(value.high, decimals)}]"
        text += f" ± {format_fixed(value.high - value.mean, decimals)}" if value.seeds > 1 else f" {interval}"
    return text + (MARK if value.within_floor else "")


def _bold(line: Line, group: Group, cells: list[str], pattern: str) -> list[str]:
    """Return the cells, with label and ToW of the best line in bold."""
    bold = (0, 1 + group.columns.index("tow")) if line.best else ()
    return [pattern.format(cell) if position in bold else cell for position, cell in enumerate(cells)]


def _title(group: Group) -> str:
    identities = f"{group.forget} forget identities" if group.forget > 1 else "1 forget identity"
    seeds = f"seeds {', '.join(map(str, group.seeds))}" if len(group.seeds) > 1 else f"seed {group.seeds[0]}"
    return f"{group.dataset}: {identities}, {seeds}"


def _legend(groups: Sequence[Group]) -> str:
    """Return the sentences below the tables, of the symbols that the tables contain."""
    lines = [line for group in groups for line in group.lines]
    values = [line.values[column] for group in groups for line in group.lines for column in group.columns]
    over_seeds = any(value.seeds > 1 and value.low is not None for value in values)
    over_people = any(value.seeds == 1 and value.low is not None for value in values)
    ranges = ["±: Student's 95 % interval over seeds"] * over_seeds + ["[ ]: bootstrap 95 % interval over people"] * over_people
    sentences = [
        "↑: higher is better; →: closer to that value is better. The oracle has ToW 100 and gap closure 1; do nothing has gap closure 0.",
        f"{'; '.join(ranges)}." if ranges else "",
        NOISE_FLOOR if any(line.row == "floor" for line in lines) else NO_FLOOR,
        f"{MARK}: the difference from doing nothing is within the noise floor." if any(v.within_floor for v in values) else "",
        "Bold: the highest ToW of the methods that read the support image alone, if above doing nothing by more than the noise floor."
        if any(_.best for _ in lines)
        else "",
        "-: unknown for at least one seed."
        if any(line.done and line.row != "floor" and value.mean is None for line, value in _shown_values(groups))
        else "",
        "≥: relearning was stopped after this many steps." if any(value.at_least for value in values) else "",
        _collapse_note(groups),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _collapse_note(groups: Sequence[Group]) -> str:
    """Return the sentences that explain the mark of a collapsed model; empty without one."""
    return collapse.EXPLANATION if any(line.collapsed for group in groups for line in group.lines) else ""


def _shown_values(groups: Sequence[Group]) -> Iterator[tuple[Line, Value]]:
    for group in groups:
        for line in group.lines:
            yield from ((line, line.values[column]) for column in group.columns)


def _key(group: Group, used: set[str]) -> str:
    """Return a LaTeX label that no earlier table has."""
    word = re.sub(r"[^a-z0-9]+", "-", group.dataset.lower()).strip("-") or "data"
    key, number = f"tab:oneshui-{word}-{group.forget}", 2
    while key in used:
        key, number = f"tab:oneshui-{word}-{group.forget}-{number}", number + 1
    used.add(key)
    return key


LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"},
        **{"±": r"$\pm$", "≥": r"$\geq$", "↑": r"$\uparrow$", "→": r"$\to$", MARK: r"$^{\dagger}$", collapse.MARK: r"$^{\ddagger}$"},
    }
)


def _escape_latex(text: str) -> str:
    guard = "{}" if text.startswith(("*", "[")) else ""  # at the start of a line LaTeX reads them as arguments of the preceding \\
    return guard + printable(text).translate(LATEX)
