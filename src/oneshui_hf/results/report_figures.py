"""Selection of a report's figures from the measured results."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from ..metrics.attack_names import ATTACKS
from . import figures as draw
from .aggregate import Group, Line, row_name
from .load import LossHistograms, Result
from .table_columns import COLUMNS, attack_name, get_nested

BINS = 24  # of a histogram that several models share


@dataclass(frozen=True)
class LineResults:
    """A line of a table, and the results of each seed that it averages."""

    line: Line
    results: list[Result]

    def cost(self, kind: str) -> float | None:
        """Return the mean of a cost over the seeds where it is known."""
        known = [cost for result in self.results if (cost := get_nested(result.row, "cost", kind)) is not None]
        return fmean(known) if known else None


BASELINE_KINDS = {"original": "do nothing", "oracle": "oracle"}


def results_by_line(group: Group, results: Sequence[Result]) -> list[LineResults]:
    """Return each line of a table with the results that it is the mean of, by seed."""
    by_line: dict[tuple[str, str], list[Result]] = {}
    for result in sorted(results, key=lambda one: one.row["seed"]):
        if (result.row["dataset"], result.row["forget"], result.row["state"]) == (group.dataset, group.forget, "done"):
            by_line.setdefault((result.row["row"], row_name(result.row)), []).append(result)
    return [LineResults(line, by_line.get((line.row, line.label), [])) for line in group.lines]


FiguresByKind = dict[str, dict[str, str]]  # for each kind of figure, SVG texts by name; the first is the legend


def draw_figures(shown: Sequence[LineResults], group: Group, prefix: str) -> FiguresByKind:
    """Return the figures of one table: trade-off, losses per person, loss histograms, attacks, cost.

    Args:
        shown: Its lines.
        group: The table.
        prefix: First part of the names of its figures.
    """
    return {kind: draw_kind(kind, shown, group, prefix) for kind in KINDS}


def draw_kind(kind: str, shown: Sequence[LineResults], group: Group, prefix: str) -> dict[str, str]:
    """Return the figures of one kind, a key of `KINDS`; empty where nothing was measured for it."""
    figures = dict(KINDS[kind](shown, group, f"{prefix}-{kind}"))
    return figures if len(figures) > 1 else {}  # a legend alone is no figure


def slug(name: str) -> str:
    """Return a name that is valid in a file name or a URL."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "x"


def _of(shown: Sequence[LineResults], *kinds: str) -> list[LineResults]:
    """Return the lines of these kinds that have a result."""
    return [one for one in shown if one.line.row in kinds and one.results]


def _names(rows: Sequence[LineResults], prefix: str) -> Iterator[tuple[str, LineResults]]:
    """Yield each row with a unique name for its figure."""
    for number, row in enumerate(rows, 1):
        yield f"{prefix}-{number:02d}-{slug(row.line.label)}", row


def _tradeoff_figures(_: Sequence[LineResults], group: Group, prefix: str) -> Iterator[tuple[str, str]]:
    lines = [line for line in group.lines if line.done and line.row != "floor" and not line.unchanged]
    methods = [line for line in lines if line.row == "method"]
    axis = "gap_closure" if any(line.values["gap_closure"].mean is not None for line in methods) else "attack"
    points = {name: [point for line in lines if (point := _tradeoff_point(line, axis, name))] for name in ("retain", "test")}
    everyone = [point for of_set in points.values() for point in of_set]
    yield f"{prefix}-key", draw.tradeoff_legend(f"{prefix}-key", everyone, floor=bool(group.floor))
    if not any(point.kind in ("method", "upper") for point in everyone):
        return
    limits = draw.tradeoff_limits(everyone)
    for name, of_set in points.items():
        if of_set:
            floors = (group.floor.get(name), group.floor.get(axis))
            title = {"retain": "Retain set", "test": "Unseen identities (test)"}[name]
            heading = COLUMNS[name].heading(group.score)
            yield f"{prefix}-{name}", draw.tradeoff(f"{prefix}-{name}", title, of_set, axis, heading, limits, floors)


def _tradeoff_point(line: Line, axis: str, name: str) -> draw.TradeOff | None:
    """Return the point of a line; None where its loss or its forgetting is unknown."""
    change, forgetting = 0.0 if line.row == "original" else line.values[name].change, line.values[axis].mean
    if change is None or forgetting is None:
        return None
    kind = BASELINE_KINDS.get(line.row) or ("upper" if line.is_upper_reference else "method")
    return draw.TradeOff(line.label, -change or 0.0, forgetting, kind)


def _people_figures(shown: Sequence[LineResults], group: Group, prefix: str) -> Iterator[tuple[str, str]]:
    rows = [one for one in _of(shown, "method") or _of(shown, "oracle", "original") if any(r.people for r in one.results)]
    people = [result.people for row in rows for result in row.results]
    persons = [person for group in people for person in group]
    limits = draw.loss_limits(people)
    known = {model: any(getattr(p, model) is not None for p in persons) for model in ("original", "oracle")}
    yield f"{prefix}-key", draw.dumbbell_legend(f"{prefix}-key", **known)
    for name, row in _names(rows, prefix):
        seeds = {f"seed {result.row['seed']}" if row.line.seeds > 1 else "": result.people for result in row.results}
        yield name, draw.dumbbells(name, row.line.label, seeds, limits)


def _loss_figures(shown: Sequence[LineResults], group: Group, prefix: str) -> Iterator[tuple[str, str]]:
    panels: list[tuple[str, list[LossHistograms], bool]] = []  # title, histograms of each seed, whether of the original model
    rows = [row for row in _of(shown, "original", "oracle", "method") if any(r.losses for r in row.results)]
    for row in rows:
        panels.append((row.line.label, [r.losses for r in row.results if r.losses], False))
    if rows and rows[0].line.row != "original" and any(losses.before for losses in panels[0][1]):
        panels.insert(0, ("before: the original model", panels[0][1], True))
    yield f"{prefix}-key", draw.histogram_legend(f"{prefix}-key")
    if not panels:
        return
    scale_rows = [row for row in rows if row.line.row != "method"] or rows  # a degraded model's losses would put all others into one bin
    top_loss = max(result.losses.edges[-1] for row in scale_rows for result in row.results if result.losses)
    edges = np.linspace(0, top_loss, BINS + 1).tolist()
    shares = [tuple(_mean_shares(losses, before, side, edges) for side in (0, 1)) for _, losses, before in panels]
    top = 1.08 * max(float(share.max()) for both in shares for share in both) or 1.0
    for number, ((title, _, _), (forget, test)) in enumerate(zip(panels, shares, strict=True), 1):
        name = f"{prefix}-{number:02d}-{slug(title)}"
        yield name, draw.histogram(name, title, edges, forget, test, top, open_end=True)


def _mean_shares(losses: Sequence[LossHistograms], before: bool, side: int, edges: Sequence[float]) -> np.ndarray:
    """Return the mean over seeds of the shares of photos in each bin; side 0 is forget, 1 is test."""
    counts = [(one.before if before else one.after, one.edges) for one in losses]
    return np.mean([draw.shares(both[side], own, edges) for both, own in counts if both], axis=0)


def _attack_figures(shown: Sequence[LineResults], group: Group, prefix: str) -> Iterator[tuple[str, str]]:
    rows = [row for row in _of(shown, "original", "oracle", "method") if any(r.roc for r in row.results)]
    curves = [curve for row in rows for result in row.results for curve in result.roc.values()]
    available = {attack for row in rows for result in row.results for attack in result.roc}
    order = [attack for attack in ATTACKS.values() if attack in available]
    order += sorted(available - set(order))
    yield f"{prefix}-key", draw.roc_legend(f"{prefix}-key", order)
    if not curves:
        return
    start = min(curve.smallest_fpr for curve in curves) / 4
    for figure, row in _names(rows, prefix):
        by_attack = {attack: [r.roc[attack] for r in row.results if attack in r.roc] for attack in order}
        means = {attack: draw.average_curves(of_attack) for attack, of_attack in by_attack.items() if of_attack}
        names = [attack_name(get_nested(result.row, "metrics", "attacks", "strongest")) for result in row.results]
        strongest_by_seed = [name for name in names if name in means]
        strongest = max(sorted(set(strongest_by_seed)), key=strongest_by_seed.count, default=None)
        yield figure, draw.roc(figure, row.line.label, means, order, strongest, start)


def _cost_figures(shown: Sequence[LineResults], group: Group, prefix: str) -> Iterator[tuple[str, str]]:
    kinds = {"apply_s": "Request time", "prepare_s": "Preparation time, once before any request"}
    points = {kind: _points(shown, kind) for kind in kinds}
    known = [point.tow for of_kind in points.values() for point in of_kind]
    if len(_of(shown, "method")) < 2 or not known:
        return
    lines = [one.line for one in shown if one.line.row in ("original", "floor")]
    levels = {line.label: tow for line in lines if (tow := line.values["tow"].mean) is not None}
    low, high = min([*known, *levels.values()]), max([*known, *levels.values()])
    margin = 0.08 * max(high - low, 2.0)
    yield f"{prefix}-key", draw.cost_legend(f"{prefix}-key", [p for of_kind in points.values() for p in of_kind], list(levels))
    for kind, title in kinds.items():
        if points[kind]:
            name = f"{prefix}-{kind.removesuffix('_s')}"
            limits = (low - 2.5 * margin, high + margin)  # room below for labels, since many methods are close to doing nothing
            yield name, draw.cost(name, title, points[kind], levels, limits)


def _points(shown: Sequence[LineResults], kind: str) -> list[draw.Point]:
    points = []
    for row in _of(shown, "method"):
        tow, seconds = row.line.values["tow"].mean, row.cost(kind)
        if tow is not None and seconds is not None and seconds > 0:
            points.append(draw.Point(row.line.label, seconds, tow, row.line.is_one_shot))
    return points


KINDS: dict[str, Callable[[Sequence[LineResults], Group, str], Iterator[tuple[str, str]]]] = {
    "tradeoff": _tradeoff_figures,
    "people": _people_figures,
    "losses": _loss_figures,
    "attacks": _attack_figures,
    "cost": _cost_figures,
}
