"""Names beside marks, so that they overlap neither each other nor a mark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .panel import MUTED, SMALL, WIDTH, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Box = tuple[float, float, float, float]  # left, bottom, right, top


def write_labels(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str]]) -> bool:
    """Write every name beside its mark, with a thin line where it is far; return whether all found a place.

    Args:
        figure: The figure.
        axes: Where the marks are.
        points: x and y of each mark, in the units of the axes, and its name.
    """
    scale = 72 / figure.dpi
    places = [tuple(float(value) * scale for value in axes.transData.transform((x, y))) for x, y, _ in points]
    corners = axes.bbox.get_points() * scale
    inside: Box = (corners[0][0] - 2, corners[0][1] + 2, WIDTH - 2, corners[1][1] + 8)
    marks = [_around(x, y, 4.5, 4.5) for x, y in places]
    names: list[Box] = []
    trails: list[Box] = []
    for number in sorted(range(len(points)), key=lambda n: (-places[n][1], places[n][0])):
        label, (x, y) = points[number][2], places[number]
        found = place(x, y, text_width(label, SMALL), names, trails, marks, number, inside)
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


def place(
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
