"""Placement of names next to marks, so that names overlap neither each other nor a mark."""

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
    """Write every name next to its mark, with a thin line where it is far away; return whether all names fit.

    Args:
        figure: The figure.
        axes: Where the marks are.
        points: x and y of each mark, in data coordinates, and its name.
    """
    scale = 72 / figure.dpi
    positions = [tuple(float(value) * scale for value in axes.transData.transform((x, y))) for x, y, _ in points]
    corners = axes.bbox.get_points() * scale
    inside: Box = (corners[0][0] - 2, corners[0][1] + 2, WIDTH - 2, corners[1][1] + 8)
    marks = [_around(x, y, 4.5, 4.5) for x, y in positions]
    names: list[Box] = []
    trails: list[Box] = []
    for number in sorted(range(len(points)), key=lambda n: (-positions[n][1], positions[n][0])):
        label, (x, y) = points[number][2], positions[number]
        placed = place_name(x, y, text_width(label, SMALL), names, trails, marks, number, inside)
        if placed is None:
            return False
        box, trail = placed
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


def place_name(
    x: float, y: float, width: float, names: Sequence[Box], trails: Sequence[Box], marks: Sequence[Box], own: int, inside: Box
) -> tuple[Box, list[Box]] | None:
    """Return the box of the nearest free position for a name, and the boxes along the line from its mark.

    The line crosses another mark, or a name, only if every free position requires it.

    Args:
        x: Of the mark.
        y: Of the mark.
        width: Of the name.
        names: Boxes of the names already placed.
        trails: Boxes along their lines.
        marks: Boxes of all marks.
        own: Index of the name's own mark.
        inside: Box in which the name must lie.
    """
    others = [*marks[:own], *marks[own + 1 :]]
    free = [box for box in _candidates(x, y, width, inside) if not any(_overlap(box, other) for other in (*names, *trails, *marks))]
    for avoided in ([*names, *others], names, []):
        for box in free:
            trail = _trail(x, y, box)
            if not any(_overlap(part, other) for part in trail for other in avoided):
                return box, trail
    return None


def _candidates(x: float, y: float, width: float, inside: Box) -> list[Box]:
    """Return the possible boxes of a name: first around its mark by distance, then on a grid."""
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
    """Return the closest point of a box."""
    return min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])


def _trail(x: float, y: float, box: Box) -> list[Box]:
    """Return small boxes along the line from a mark to its name; none where the name is next to it."""
    end = _nearest(x, y, box)
    if math.dist((x, y), end) < 12:
        return []
    steps = np.linspace(0.2, 0.95, 8)
    return [_around(x + step * (end[0] - x), y + step * (end[1] - y), 0.6, 0.6) for step in steps.tolist()]


def _around(x: float, y: float, across: float, up: float) -> Box:
    return x - across, y - up, x + across, y + up


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
