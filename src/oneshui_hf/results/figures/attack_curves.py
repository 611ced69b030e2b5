"""ROC curves of membership inference attacks, with the range of FPR that the sample does not resolve."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .panel import DARK, GREYS, INK, LINES, MUTED, SHADE, SMALL, as_svg, legend, lines, panel, style


@dataclass(frozen=True)
class Curve:
    """The ROC curve of an attack: increasing true and false positive rates, and the smallest FPR above 0 that the sample resolves."""

    fpr: Sequence[float]
    tpr: Sequence[float]
    smallest_fpr: float


def average_curves(curves: Sequence[Curve]) -> Curve:
    """Return the mean of curves at every false positive rate that one of them has, with the coarsest of their resolutions.

    A curve is linear between its points, and vertical where several points share a false positive rate.
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
    is_point = (rates[before] == grid) | (after == before)
    return np.stack([np.where(is_point, low[before], between), np.where(is_point, high[before], between)])


def roc(name: str, title: str, curves: Mapping[str, Curve], order: Sequence[str], strongest: str | None, start: float) -> str:
    """Return a panel with the ROC curves of attacks over a logarithmic FPR; the unresolved range is shaded and labelled.

    Args:
        name: The figure's name.
        title: Its title.
        curves: By attack.
        order: All attacks of the report, which fixes the line style of each.
        strongest: The attack that is drawn in front of the others.
        start: Start of the FPR axis, above 0; its end is 1.
    """
    styles = _line_styles(order)
    resolution = max(curve.smallest_fpr for curve in curves.values())
    with style():
        figure, axes = panel(190, left=44, right=22)
        axes.axvspan(start, resolution, facecolor=SHADE, edgecolor="none", zorder=0)
        axes.axvline(resolution, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        middle = math.sqrt(start * resolution)
        # The label is placed in the widest gap between the curves; its background covers a curve behind it.
        levels = [0.0, *sorted(float(_ends(curve, np.array([middle]))[1, 0]) for curve in curves.values()), 1.0]
        low, high = max(itertools.pairwise(levels), key=lambda ends: ends[1] - ends[0])
        background = {"facecolor": SHADE, "edgecolor": "none", "alpha": 0.85, "pad": 1}
        text_style: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center", "fontsize": SMALL, "color": MUTED}
        axes.text(middle, min(max((low + high) / 2, 0.2), 0.8), "not resolved", **text_style, zorder=6, bbox=background)
        chance = np.geomspace(start, 1, 60)
        axes.plot(chance, chance, color=INK, linewidth=0.9, linestyle=(0, (1, 2)), zorder=2)
        values = {f"value-{order.index(attack)}": text for attack, text in _rates(curves, strongest, resolution).items()}
        for attack in sorted(curves, key=lambda attack: (attack == strongest, order.index(attack))):
            color, line = styles[attack]
            is_front = attack == strongest
            axes.plot(
                *_curve_from(curves[attack], start), color=DARK if is_front else color, linestyle=line,
                linewidth=2.1 if is_front else 1.1, zorder=5 if is_front else 3, gid=f"value-{order.index(attack)}",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set(xlim=(start, 1), ylim=(0, 1.02), yticks=[0, 0.25, 0.5, 0.75, 1])
        powers = [10.0**power for power in range(math.ceil(math.log10(start) - 1e-9), 1)]
        axes.set_xticks(powers, [_percent(power) for power in powers])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.set_xlabel("false positive rate (FPR)")
        axes.set_ylabel("true positive rate (TPR)")
        axes.grid()
        return as_svg(figure, name, title, _describe_curves(curves, strongest, resolution), values)


def _curve_from(curve: Curve, start: float) -> tuple[list[float], list[float]]:
    """Return the part of a curve from the start of a logarithmic axis."""
    first = float(_ends(curve, np.array([start]))[1, 0])
    points = [(start, first), *((x, y) for x, y in zip(curve.fpr, curve.tpr, strict=True) if x > start)]
    return [x for x, _ in points], [y for _, y in points]


def _percent(value: float) -> str:
    return f"{100 * value:g} %"


def _describe_curves(curves: Mapping[str, Curve], strongest: str | None, resolution: float) -> str:
    """Return the alternative text of the figure."""
    rates = "; ".join(_rates(curves, strongest, resolution).values())
    fpr = _percent(float(f"{max(0.1, resolution):.2g}"))
    return f"ROC curves. TPR at {fpr} FPR: {rates}. The sample does not resolve an FPR below {resolution:.2g}."


def _rates(curves: Mapping[str, Curve], strongest: str | None, resolution: float) -> dict[str, str]:
    """Return the TPR of each attack at 10 % FPR, or at the smallest FPR that is resolved, as text."""
    fpr = np.array([max(0.1, resolution)])
    rates = {attack: float(_ends(curve, fpr)[1, 0]) for attack, curve in curves.items()}
    return {attack: f"{attack}{' (strongest)' * (attack == strongest)} {100 * rate:.0f} %" for attack, rate in rates.items()}


def roc_legend(name: str, order: Sequence[str]) -> str:
    """Return the legend of `roc`."""
    line = lines()
    styles = _line_styles(order)
    entries = [(attack, line([], [], color=styles[attack][0], linestyle=styles[attack][1], linewidth=1.6)) for attack in order]
    entries.append(("strongest (thick)", line([], [], color=DARK, linewidth=2.4)))
    entries.append(("chance", line([], [], color=INK, linewidth=0.9, linestyle=(0, (1, 2)))))
    return legend(name, entries)


def _line_styles(order: Sequence[str]) -> dict[str, tuple[str, Any]]:
    return {attack: (GREYS[n % len(GREYS)], LINES[n % len(LINES)]) for n, attack in enumerate(order)}
