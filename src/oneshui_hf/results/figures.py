"""The figures of a report: numbers in, the text of an SVG out.

Every figure is a small panel of one width, whose letters stay readable on a phone and two abreast on paper; a report lays many beside each
other. The same numbers give the same bytes. Colours differ in lightness as well as in hue, and every mark has a shape of its own, so
that a grey print and a colour-blind reader lose nothing. Text is text (not outlines), measured in a wide font, so that a reader's own
font fits where that one did.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any
from xml.dom.minidom import Document, parseString

import numpy as np

from ..errors import OneshuiError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

WIDTH = 340.0  # of a panel, in points; all lengths here are
TEXT, SMALL = 11.0, 10.0
INK, MUTED, RULE = "#1b1f24", "#59626e", "#c3c9d1"
DARK, BRIGHT, PALE = "#0b4a82", "#c8690a", "#f4cf9f"
LINES = ("solid", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (2.5, 3)))
GREYS = ("#8a6a3f", "#6d7683", "#9a5a14", "#454c56", "#a07f55")  # of attacks that are not the strongest

Limits = tuple[float, float]

_LONG = re.compile(r"(\.\d\d)\d+")
_FONTS = "'DejaVu Sans', Verdana, Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Person:
    """Mean losses on one person's photos: by the original, by the model, by the oracle; None where it is not known."""

    original: float | None
    model: float | None
    oracle: float | None


@dataclass(frozen=True)
class Curve:
    """The ROC curve of an attack: true and false positive rates, rising, and the smallest FPR other than 0 that the sample has."""

    fpr: Sequence[float]
    tpr: Sequence[float]
    smallest_fpr: float


@dataclass(frozen=True)
class Point:
    """A method in the figure of cost against quality: seconds, ToW in percent, and whether it reads the photo alone."""

    label: str
    seconds: float
    tow: float
    photo_alone: bool


def require_matplotlib() -> None:
    """Check that figures can be drawn.

    Raises:
        OneshuiError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise OneshuiError("The figures of a report need matplotlib: install it with `pip install 'oneshui-hf[plots]'`.") from None


# Each person


def loss_limits(panels: Sequence[Sequence[Person]]) -> Limits:
    """Return an axis of losses for panels that share it.

    It holds every loss of the original and of the oracle with room to spare. Losses of a destroyed model, many times as large, would press
    all others into a corner; they are drawn at its end.
    """
    people = [person for panel in panels for person in panel]
    known = [loss for p in people for loss in (p.original, p.oracle) if loss is not None]
    models = [p.model for p in people if p.model is not None]
    top = max([0.0, *known, min(max(models, default=0.0), 1.5 * max(known)) if known else max(models, default=0.0)])
    return 0.0, 1.06 * top or 1.0


def dumbbells(name: str, title: str, groups: Mapping[str, Sequence[Person]], limits: Limits) -> str:
    """Return a panel with a line a person, from the original's loss to the model's, and the oracle's marked.

    Args:
        name: The figure's name, unlike that of any other in one document.
        title: What stands above it.
        groups: People by what stands beside them, such as a seed; in one group without a name they are numbered.
        limits: Ends of the axis; losses beyond are arrows at its end with their value beside them.
    """
    count = sum(map(len, groups.values()))
    pitch = max(4.5, min(14.0, 330 / (count + len(groups))))
    numbered = len(groups) == 1
    with _style():
        figure, axes = _panel((count + len(groups) - 1) * pitch + 14, left=34 if numbered else 48, right=30)
        size = min(6.0, 0.62 * pitch)
        row, ticks = 0.0, {}
        for label, people in groups.items():
            ticks[row + (len(people) - 1) / 2] = label
            for person in people:
                _dumbbell(axes, row, person, limits, size)
                row += 1
            row += 1
        if numbered:
            ticks = {float(number): str(number + 1) for number in range(count) if pitch >= 9 or number % 5 == 4 or not number}
            axes.set_ylabel("person")
        axes.set(xlim=limits, ylim=(row - 1.2, -0.8), yticks=list(ticks), yticklabels=list(ticks.values()))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel("mean loss on a person's photos")
        return _svg(figure, name, title, _tell_people(groups))


def _dumbbell(axes: Axes, row: float, person: Person, limits: Limits, size: float) -> None:
    low, high = limits
    if person.oracle is not None:
        axes.plot([person.oracle], [row], "|", color=BRIGHT, markersize=1.9 * size, markeredgewidth=2.2, clip_on=False, zorder=2)
    model = person.model
    if person.original is not None and model is not None:
        axes.plot([person.original, min(model, high)], [row, row], color=DARK, linewidth=1.3, alpha=0.55, solid_capstyle="butt", zorder=3)
    if person.original is not None:
        axes.plot([person.original], [row], "o", color="white", markeredgecolor=DARK, markeredgewidth=1.2, markersize=size, zorder=4)
    if model is None:
        return
    axes.plot(
        [min(model, high)],
        [row],
        ">" if model > high else "o",
        color=DARK,
        markersize=size + 0.8,
        markeredgewidth=0,
        clip_on=False,
        zorder=5,
    )
    if model > high and size >= 5:
        axes.text(high + 0.03 * (high - low), row, f"{model:.3g}", fontsize=9, va="center", ha="left", color=DARK, clip_on=False)


def _tell_people(groups: Mapping[str, Sequence[Person]]) -> str:
    lines = []
    for label, people in groups.items():
        for number, person in enumerate(people, 1):
            who = f"{label}, person {number}" if label else f"person {number}"
            losses = {"before": person.original, "after": person.model, "oracle": person.oracle}
            lines.append(f"{who}: " + ", ".join(f"{loss:.3g} {when}" for when, loss in losses.items() if loss is not None))
    return "Mean loss a person. " + "; ".join(lines) + "."


def dumbbell_key(name: str, *, original: bool, oracle: bool) -> str:
    """Return the key of the marks of `dumbbells`, of those that are used."""
    from_lines = _lines()
    entries = [("this model", from_lines([], [], color=DARK, marker="o", markersize=6.5, linestyle="none"))]
    if original:
        mark = from_lines([], [], color="white", marker="o", markeredgecolor=DARK, markeredgewidth=1.2, markersize=6, linestyle="none")
        entries.insert(0, ("original model", mark))
    if oracle:
        mark = from_lines([], [], color=BRIGHT, marker="|", markersize=11, markeredgewidth=2.2, linestyle="none")
        entries.append(("oracle", mark))
    return _key(name, entries)


# Losses


def shares(counts: Sequence[float], edges: Sequence[float], onto: Sequence[float]) -> np.ndarray:
    """Return the shares of a histogram in other bins, (b,), summing to 1: the first and the last take what lies beyond.

    Within a bin the photos are taken to be spread evenly.
    """
    total = float(np.sum(counts))
    if not total:
        return np.zeros(len(onto) - 1)
    below = np.concatenate([[0.0], np.cumsum(counts)]) / total
    reached = np.interp(onto, edges, below)
    reached[0], reached[-1] = 0.0, 1.0
    return np.diff(reached)


def histogram(name: str, title: str, edges: Sequence[float], forget: np.ndarray, test: np.ndarray, top: float, *, open_end: bool) -> str:
    """Return a panel with the share of photos at each loss, of the people who asked over that of strangers.

    Args:
        name: The figure's name.
        title: What stands above it.
        edges: Of the bins, (b + 1,).
        forget: Share of the forget set in each bin, (b,).
        test: Share of the test set.
        top: End of the axis of shares.
        open_end: Whether the last bin also holds what lies beyond it.
    """
    with _style():
        figure, axes = _panel(118, left=42)
        axes.stairs(test, edges, fill=True, facecolor=PALE, edgecolor="none")
        axes.stairs(test, edges, color=BRIGHT, linewidth=0.8)
        axes.stairs(forget, edges, color=DARK, linewidth=1.9)
        axes.set(xlim=(edges[0], edges[-1]), ylim=(0, top))
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.locator_params(axis="y", nbins=4)
        axes.set_xlabel("loss on a photo" + (", the last bin open-ended" if open_end else ""))
        axes.grid(axis="y")
        middles = (np.asarray(edges[:-1]) + np.asarray(edges[1:])) / 2
        about = f"Losses of photos. Mean loss, by bins: {middles @ forget:.3g} on forget, {middles @ test:.3g} on test."
        return _svg(figure, name, title, about)


def histogram_key(name: str) -> str:
    """Return the key of `histogram`."""
    from matplotlib.patches import Patch

    forget = _lines()([], [], color=DARK, linewidth=1.9)
    test = Patch(facecolor=PALE, edgecolor=BRIGHT, linewidth=0.8)
    return _key(name, [("forget: who asked", forget), ("test: strangers", test)])


# Attacks


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean of curves at every false positive rate that one of them has; the coarsest resolution of them counts.

    A curve is straight between its points, and upright where several share a false positive rate.
    """
    grid = np.unique(np.concatenate([np.asarray(curve.fpr, dtype=float) for curve in curves]))
    ends = np.mean([_ends(curve, grid) for curve in curves], axis=0)  # (2, g)
    return Curve(np.repeat(grid, 2).tolist(), ends.T.ravel().tolist(), max(curve.smallest_fpr for curve in curves))


def _ends(curve: Curve, grid: np.ndarray) -> np.ndarray:
    """Return the lowest and the highest true positive rate of a curve at each false positive rate, (2, g)."""
    fpr, tpr = np.asarray(curve.fpr, dtype=float), np.asarray(curve.tpr, dtype=float)
    rates, first = np.unique(fpr, return_index=True)
    low, high = tpr[first], tpr[np.append(first[1:], len(fpr)) - 1]
    before = np.clip(np.searchsorted(rates, grid, side="right") - 1, 0, len(rates) - 1)
    after = np.minimum(before + 1, len(rates) - 1)
    width = np.where(after > before, rates[after] - rates[before], 1.0)
    between = high[before] + (grid - rates[before]) / width * (low[after] - high[before])
    here = (rates[before] == grid) | (after == before)
    return np.stack([np.where(here, low[before], between), np.where(here, high[before], between)])


def roc(name: str, title: str, curves: Mapping[str, Curve], order: Sequence[str], strongest: str | None, start: float) -> str:
    """Return a panel with the ROC curves of attacks over a logarithmic FPR; what the sample cannot resolve is shaded and says so.

    Args:
        name: The figure's name.
        title: What stands above it.
        curves: By attack.
        order: All attacks of the report, which fixes the look of each.
        strongest: The attack that is drawn in front of the others.
        start: Where the axis of false positive rates starts, above 0; 1 is its end.
    """
    looks = _looks(order)
    blind = max(curve.smallest_fpr for curve in curves.values())
    with _style():
        figure, axes = _panel(190, left=44, right=22)
        axes.axvspan(start, blind, facecolor="#e9ecf0", edgecolor="none", zorder=0)
        axes.axvline(blind, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        middle = math.sqrt(start * blind)
        # The widest room that the curves leave; a cover hides what still passes behind.
        levels = [0.0, *sorted(float(_ends(curve, np.array([middle]))[1, 0]) for curve in curves.values()), 1.0]
        low, high = max(itertools.pairwise(levels), key=lambda ends: ends[1] - ends[0])
        cover = {"facecolor": "#e9ecf0", "edgecolor": "none", "alpha": 0.85, "pad": 1}
        look: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center", "fontsize": SMALL, "color": MUTED}
        axes.text(middle, min(max((low + high) / 2, 0.2), 0.8), "not resolved", **look, zorder=6, bbox=cover)
        chance = np.geomspace(start, 1, 60)
        axes.plot(chance, chance, color=INK, linewidth=0.9, linestyle=(0, (1, 2)), zorder=2)
        for attack in sorted(curves, key=lambda attack: (attack == strongest, order.index(attack))):
            color, line = looks[attack]
            front = attack == strongest
            axes.plot(
                *_from(curves[attack], start), color=DARK if front else color, linestyle=line,
                linewidth=2.1 if front else 1.1, zorder=5 if front else 3,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set(xlim=(start, 1), ylim=(0, 1.02), yticks=[0, 0.25, 0.5, 0.75, 1])
        powers = [10.0**power for power in range(math.ceil(math.log10(start) - 1e-9), 1)]
        axes.set_xticks(powers, [_percent(power) for power in powers])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.set_xlabel("strangers taken for members (FPR)")
        axes.set_ylabel("members found (TPR)")
        axes.grid()
        return _svg(figure, name, title, _tell_attacks(curves, strongest, blind))


def _from(curve: Curve, start: float) -> tuple[list[float], list[float]]:
    """Return a curve from where a logarithmic axis starts."""
    first = float(_ends(curve, np.array([start]))[1, 0])
    points = [(start, first), *((x, y) for x, y in zip(curve.fpr, curve.tpr, strict=True) if x > start)]
    return [x for x, _ in points], [y for _, y in points]


def _percent(value: float) -> str:
    return f"{100 * value:g} %"


def _tell_attacks(curves: Mapping[str, Curve], strongest: str | None, blind: float) -> str:
    found = []
    for attack, curve in curves.items():
        reached = float(_ends(curve, np.array([max(0.1, blind)]))[1, 0])
        front = " (the strongest)" if attack == strongest else ""
        found.append(f"{attack}{front} finds {100 * reached:.0f} %")
    where = _percent(float(f"{max(0.1, blind):.2g}"))
    return f"ROC curves. At {where} false alarms: {'; '.join(found)}. Below an FPR of {blind:.2g} the sample has too few photos to tell."


def roc_key(name: str, order: Sequence[str]) -> str:
    """Return the key of `roc`."""
    line = _lines()
    looks = _looks(order)
    entries = [(attack, line([], [], color=looks[attack][0], linestyle=looks[attack][1], linewidth=1.6)) for attack in order]
    entries.append(("the strongest: thick", line([], [], color=DARK, linewidth=2.4)))
    entries.append(("guessing", line([], [], color=INK, linewidth=0.9, linestyle=(0, (1, 2)))))
    return _key(name, entries)


def _looks(order: Sequence[str]) -> dict[str, tuple[str, Any]]:
    return {attack: (GREYS[n % len(GREYS)], LINES[n % len(LINES)]) for n, attack in enumerate(order)}


# Cost


def cost(name: str, title: str, points: Sequence[Point], references: Mapping[str, float], limits: Limits) -> str:
    """Return a panel of seconds, on a logarithmic axis, against ToW, with each method's name beside its mark.

    The names overlap neither each other nor a mark: the panel grows until all have found a place.

    Args:
        name: The figure's name.
        title: What stands above it.
        points: The methods; seconds above 0.
        references: Levels of ToW to compare with, by what they are.
        limits: Ends of the axis of ToW.
    """
    about = "; ".join(f"{p.label}: {p.seconds:.3g} s, ToW {p.tow:.1f}" for p in sorted(points, key=lambda p: -p.tow))
    with _style():
        for height in range(230, 1200, 60):
            figure, axes = _panel(float(height), left=40, top=40)
            _draw_points(axes, points, references, limits)
            if _label_points(figure, axes, points):
                return _svg(figure, name, title, f"Seconds against ToW. {about}.")
    raise OneshuiError(f"The figure of cost against quality has no room for {len(points)} names; report fewer methods at a time.")


def _draw_points(axes: Axes, points: Sequence[Point], references: Mapping[str, float], limits: Limits) -> None:
    for (_, level), line in zip(references.items(), LINES[1:], strict=False):
        axes.axhline(level, color=BRIGHT, linewidth=1.1, linestyle=line, zorder=1)
    for alone, marker, face in ((True, "o", DARK), (False, "s", "white")):
        chosen = [p for p in points if p.photo_alone is alone]
        axes.plot(
            [p.seconds for p in chosen], [p.tow for p in chosen], marker, color=face, markeredgecolor=DARK,
            markeredgewidth=1.3, markersize=6.5, zorder=4, clip_on=False,
        )  # fmt: skip
    seconds = [p.seconds for p in points]
    low, high = min(seconds) / 2.2, max(seconds) * 2.2
    if high / low < 30:
        low, high = low / 2, high * 2
    axes.set_xscale("log")
    axes.set(xlim=(low, high), ylim=limits)
    powers = [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    powers = powers[:: max(1, math.ceil(len(powers) / 6))]
    axes.set_xticks(powers, [f"{power:,.0f} s" if power >= 1 else f"{power:g} s" for power in powers])
    axes.minorticks_off()
    axes.grid()
    axes.set_xlabel("seconds")
    axes.set_ylabel("ToW (100 is the oracle)")


def cost_key(name: str, points: Sequence[Point], references: Sequence[str]) -> str:
    """Return the key of `cost`."""
    line = _lines()
    words = {True: ("reads the photo alone", "o", DARK), False: ("also reads training data", "s", "white")}
    entries = []
    for alone in (True, False):
        if any(p.photo_alone is alone for p in points):
            label, marker, face = words[alone]
            mark = line([], [], marker=marker, color=face, markeredgecolor=DARK, markeredgewidth=1.3, markersize=6.5, linestyle="none")
            entries.append((label, mark))
    entries += [
        (label, line([], [], color=BRIGHT, linewidth=1.3, linestyle=look)) for label, look in zip(references, LINES[1:], strict=False)
    ]
    return _key(name, entries)


Box = tuple[float, float, float, float]  # left, bottom, right, top


def _label_points(figure: Figure, axes: Axes, points: Sequence[Point]) -> bool:
    """Write every name beside its mark, with a thin line where it is far; return whether all found a place."""
    scale = 72 / figure.dpi
    places = [tuple(float(value) * scale for value in axes.transData.transform((p.seconds, p.tow))) for p in points]
    corners = axes.bbox.get_points() * scale
    inside: Box = (corners[0][0] - 2, corners[0][1] + 2, WIDTH - 2, corners[1][1] + 8)
    marks = [_around(x, y, 4.5, 4.5) for x, y in places]
    names: list[Box] = []
    trails: list[Box] = []
    for number in sorted(range(len(points)), key=lambda n: (-places[n][1], places[n][0])):
        label, (x, y) = points[number].label, places[number]
        found = _place(x, y, text_width(label, SMALL), names, trails, marks, number, inside)
        if found is None:
            return False
        box, trail = found
        names.append(box)
        trails += trail
        left, bottom, right, top = box
        to_figure = figure.dpi_scale_trans
        if trail:
            end = _nearest(x, y, box)
            axes.plot(
                [x / 72, end[0] / 72], [y / 72, end[1] / 72], color=MUTED, linewidth=0.6, transform=to_figure, zorder=3, clip_on=False,
                scalex=False, scaley=False,
            )  # fmt: skip
        axes.text(
            (left + right) / 144, (bottom + top) / 144, label, fontsize=SMALL, ha="center", va="center", transform=to_figure, zorder=6,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.3},
        )  # fmt: skip
    return True


def _place(
    x: float, y: float, width: float, names: Sequence[Box], trails: Sequence[Box], marks: Sequence[Box], own: int, inside: Box
) -> tuple[Box, list[Box]] | None:
    """Return the nearest free place for a name, and the boxes along the line that leads to it from its own mark.

    The line crosses another mark, or even a name, only where there is no other way.
    """
    others = [*marks[:own], *marks[own + 1 :]]
    free = [box for box in _around_mark(x, y, width, inside) if not any(_overlap(box, other) for other in (*names, *trails, *marks))]
    for avoided in ([*names, *others], names, []):
        for box in free:
            trail = _trail(x, y, box)
            if not any(_overlap(part, other) for part in trail for other in avoided):
                return box, trail
    return None


def _around_mark(x: float, y: float, width: float, inside: Box) -> list[Box]:
    """Return the places for a name that lie inside: around its mark, the nearest first, then anywhere."""
    near = []
    for distance in (7.0, 11.0, 17.0, 24.0, 32.0, 42.0, 54.0, 68.0, 84.0):
        for angle in (0, 180, 35, -35, 145, -145, 90, -90, 60, -60, 120, -120, 15, -15, 165, -165):
            across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            near.append(_around(x + across * (distance + width / 2), y + up * (distance + SMALL / 2), width / 2, SMALL / 2 + 1))
    left, bottom, right, top = inside
    columns = np.linspace(left + width / 2, right - width / 2, 5)
    rows = np.arange(bottom + SMALL / 2 + 1, top - SMALL / 2 - 1, SMALL / 2 + 1)
    far = [_around(float(column), float(row), width / 2, SMALL / 2 + 1) for column in columns for row in rows]
    far.sort(key=lambda box: math.dist((x, y), _nearest(x, y, box)))
    return [box for box in (*near, *far) if box[0] >= left and box[1] >= bottom and box[2] <= right and box[3] <= top]


def _nearest(x: float, y: float, box: Box) -> tuple[float, float]:
    """Return the point of a box that is nearest."""
    return min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])


def _trail(x: float, y: float, box: Box) -> list[Box]:
    """Return small boxes along the line from a mark to its name; none where the name stands beside it."""
    end = _nearest(x, y, box)
    if math.dist((x, y), end) < 12:
        return []
    steps = np.linspace(0.2, 0.95, 8)
    return [_around(x + step * (end[0] - x), y + step * (end[1] - y), 0.6, 0.6) for step in steps.tolist()]


def _around(x: float, y: float, across: float, up: float) -> Box:
    return x - across, y - up, x + across, y + up


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


# What all share


@functools.cache
def text_width(text: str, size: float) -> float:
    """Return the width of a line of text in points, in the font that figures are measured with."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    with _style():
        return float(TextPath((0, 0), text or " ", prop=FontProperties(family="DejaVu Sans", size=size)).get_extents().width) + 2


def inline(svg: str) -> str:
    """Return an SVG as it stands within an HTML page, which names no address of a namespace."""
    return svg.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)


@contextmanager
def _style() -> Iterator[None]:
    from matplotlib import rc_context, rcParamsDefault

    own: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "oneshui", "font.family": ["DejaVu Sans"], "font.size": TEXT, "text.parse_math": False,
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "axes.linewidth": 0.7, "axes.spines.top": False,
        "axes.spines.right": False, "axes.labelsize": SMALL, "axes.axisbelow": True, "xtick.labelsize": SMALL, "ytick.labelsize": SMALL,
        "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "xtick.major.size": 3,
        "ytick.major.size": 3, "grid.color": "#e3e6ea", "grid.linewidth": 0.6, "axes.unicode_minus": True,
    }  # fmt: skip
    # A reader's own matplotlibrc must not change the bytes. The backend is never asked for, and is not to be touched.
    with rc_context({key: value for key, value in rcParamsDefault.items() if not key.startswith(("backend", "interactive"))} | own):
        yield


def _panel(inner: float, *, left: float, right: float = 12.0, top: float = 26.0, bottom: float = 38.0) -> tuple[Figure, Axes]:
    """Return a figure with axes of the given inner height, at the same place whatever their labels are."""
    from matplotlib.figure import Figure

    left += 14  # for the label of the axis
    height = inner + top + bottom
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    axes = figure.add_axes((left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, inner / height))
    axes.yaxis.set_label_coords(-(left - 14) / (WIDTH - left - right), 0.5)
    return figure, axes


def _lines() -> type[Line2D]:
    from matplotlib.lines import Line2D

    return Line2D


def _key(name: str, entries: Sequence[tuple[str, Any]]) -> str:
    """Return the entries of a key, one row after the other, as wide as a panel."""
    from matplotlib.figure import Figure

    with _style():
        rows: list[list[tuple[str, Any, float]]] = [[]]
        used = 0.0
        for label, mark in entries:
            width = 30 + text_width(label, SMALL) + 10
            if used + width > WIDTH and rows[-1]:
                rows.append([])
                used = 0.0
            rows[-1].append((label, mark, used))
            used += width
        height = 17.0 * len(rows) + 4
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        for number, row in enumerate(rows):
            for label, mark, start in row:
                figure.legend(
                    [mark], [label], loc="center left", bbox_to_anchor=(start / WIDTH, 1 - (17 * number + 10.5) / height),
                    frameon=False, fontsize=SMALL, handlelength=2.2, handletextpad=0.6, borderpad=0, borderaxespad=0,
                )  # fmt: skip
        return _svg(figure, name, "", f"Key: {', '.join(label for label, _ in entries)}.")


def _svg(figure: Figure, name: str, title: str, about: str) -> str:
    """Return a figure as one `<svg>` that says what it shows, with no date, no address that anything fetches and ids of its own."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    if title:
        height = figure.get_figheight() * 72
        most = int(len(title) * 0.86 * WIDTH / text_width(title, TEXT))  # bold letters are wider
        shown = title if len(title) <= most else f"{title[: most - 1]}…"
        figure.text(1 / WIDTH, 1 - 13 / height, shown, fontsize=TEXT + 0.5, fontweight="bold", va="center")
    stream = StringIO()
    FigureCanvasSVG(figure).print_svg(stream, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    words = " ".join(f"{title}. {about}".split()) if title else about
    return _tidy(parseString(stream.getvalue()), name, words) + "\n"


def _tidy(document: Document, name: str, words: str) -> str:
    """Return the text of an SVG's element without what a page would hold twice, or would be wrong within one."""
    root = document.documentElement
    assert root is not None
    for tag in ("metadata", "style"):  # a style sheet would hold for the whole page
        for found in root.getElementsByTagName(tag):
            assert found.parentNode is not None
            found.parentNode.removeChild(found)
    elements = root.getElementsByTagName("*")
    links = [element for element in elements if element.hasAttribute("xlink:href")]
    clipped = [element for element in elements if element.hasAttribute("clip-path")]
    used = {element.getAttribute("xlink:href")[1:] for element in links} | {e.getAttribute("clip-path")[5:-1] for e in clipped}
    for element in elements:
        if element.hasAttribute("id"):
            own = element.getAttribute("id")
            element.removeAttribute("id")
            if own in used:
                element.setAttribute("id", f"{name}-{own}")
        for key in ("d", "x", "y", "transform"):
            if element.hasAttribute(key):
                element.setAttribute(key, _LONG.sub(r"\1", element.getAttribute(key)))
        if "'DejaVu Sans'" in element.getAttribute("style"):
            element.setAttribute("style", element.getAttribute("style").replace("'DejaVu Sans'", _FONTS))
    for element in links:
        element.setAttribute("href", f"#{name}-{element.getAttribute('xlink:href')[1:]}")
        element.removeAttribute("xlink:href")
    for element in clipped:
        element.setAttribute("clip-path", f"url(#{name}-{element.getAttribute('clip-path')[5:-1]})")
    for key in ("xmlns:xlink", "width", "height", "version"):
        if root.hasAttribute(key):
            root.removeAttribute(key)
    look = {"stroke-linejoin": "round", "stroke-linecap": "butt", "role": "img", "aria-label": words}
    for key, value in look.items():
        root.setAttribute(key, value)
    title = document.createElement("title")
    title.appendChild(document.createTextNode(words))
    root.insertBefore(title, root.firstChild)
    return root.toxml()
