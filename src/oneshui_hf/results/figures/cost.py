"""Cost against quality: seconds and ToW of each method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import OneshuiError
from .labels import write_labels
from .panel import BRIGHT, DARK, LINES, Limits, as_svg, legend, lines, panel, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Point:
    """A method in the figure of cost against quality: seconds, ToW in percent, and whether it reads the support image alone."""

    label: str
    seconds: float
    tow: float
    is_one_shot: bool


def cost(name: str, title: str, points: Sequence[Point], references: Mapping[str, float], limits: Limits) -> str:
    """Return a panel of ToW over seconds, on a logarithmic axis, with the name of each method next to its mark.

    Names overlap neither each other nor a mark: the height is increased until all names fit.

    Args:
        name: The figure's name.
        title: Its title.
        points: The methods; seconds above 0.
        references: Horizontal lines at levels of ToW, by label.
        limits: Ends of the ToW axis.

    Raises:
        OneshuiError: The names do not fit into the largest panel.
    """
    points = sorted(points, key=lambda p: -p.tow)
    values = {f"value-{number}": f"{p.label}: {p.seconds:.3g} s, ToW {p.tow:.1f}" for number, p in enumerate(points)}
    with style():
        for height in range(230, 1200, 60):
            figure, axes = panel(float(height), left=40, top=40)
            _draw_points(axes, points, references, limits)
            if write_labels(figure, axes, [(p.seconds, p.tow, p.label) for p in points]):
                return as_svg(figure, name, title, f"Seconds against ToW. {'; '.join(values.values())}.", values)
    raise OneshuiError(f"The figure of cost against quality has no room for {len(points)} names; report fewer methods at a time.")


def _draw_points(axes: Axes, points: Sequence[Point], references: Mapping[str, float], limits: Limits) -> None:
    for (_, level), line in zip(references.items(), LINES[1:], strict=False):
        axes.axhline(level, color=BRIGHT, linewidth=1.1, linestyle=line, zorder=1)
    for number, point in enumerate(points):
        marker, face = ("o", DARK) if point.is_one_shot else ("s", "white")
        axes.plot(
            [point.seconds], [point.tow], marker, color=face, markeredgecolor=DARK, markeredgewidth=1.3, markersize=6.5, zorder=4,
            clip_on=False, gid=f"value-{number}",
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
    axes.set_xlabel("wall time, s")
    axes.set_ylabel("ToW (oracle: 100)")


def cost_legend(name: str, points: Sequence[Point], references: Sequence[str]) -> str:
    """Return the legend of `cost`."""
    line = lines()
    marks = {True: ("reads the support image alone", "o", DARK), False: ("also reads training data", "s", "white")}
    entries = []
    for one_shot in (True, False):
        if any(p.is_one_shot is one_shot for p in points):
            label, marker, face = marks[one_shot]
            mark = line([], [], marker=marker, color=face, markeredgecolor=DARK, markeredgewidth=1.3, markersize=6.5, linestyle="none")
            entries.append((label, mark))
    entries += [
        (label, line([], [], color=BRIGHT, linewidth=1.3, linestyle=dashes)) for label, dashes in zip(references, LINES[1:], strict=False)
    ]
    return legend(name, entries)
