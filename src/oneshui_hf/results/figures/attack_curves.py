"""What attackers can do: ROC curves, and what the sample cannot resolve of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .panel import DARK, INK, LINES, MUTED, SMALL, as_svg, key, lines, panel, style

GREYS = ("#8a6a3f", "#6d7683", "#9a5a14", "#454c56", "#a07f55")  # of attacks that are not the strongest


@dataclass(frozen=True)
class Curve:
    """The ROC curve of an attack: true and false positive rates, rising, and the smallest FPR other than 0 that the sample has."""

    fpr: Sequence[float]
    tpr: Sequence[float]
    smallest_fpr: float


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
    with style():
        figure, axes = panel(190, left=44, right=22)
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
        return as_svg(figure, name, title, _tell_attacks(curves, strongest, blind))


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
    line = lines()
    looks = _looks(order)
    entries = [(attack, line([], [], color=looks[attack][0], linestyle=looks[attack][1], linewidth=1.6)) for attack in order]
    entries.append(("the strongest: thick", line([], [], color=DARK, linewidth=2.4)))
    entries.append(("guessing", line([], [], color=INK, linewidth=0.9, linestyle=(0, (1, 2)))))
    return key(name, entries)


def _looks(order: Sequence[str]) -> dict[str, tuple[str, Any]]:
    return {attack: (GREYS[n % len(GREYS)], LINES[n % len(LINES)]) for n, attack in enumerate(order)}
