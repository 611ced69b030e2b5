"""Each person: the original's loss on their photos, the model's, and the oracle's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .panel import BRIGHT, DARK, Limits, as_svg, key, lines, panel, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Person:
    """Mean losses on one person's photos: by the original, by the model, by the oracle; None where it is not known."""

    original: float | None
    model: float | None
    oracle: float | None


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
    with style():
        figure, axes = panel((count + len(groups) - 1) * pitch + 14, left=34 if numbered else 48, right=30)
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
        return as_svg(figure, name, title, _tell_people(groups))


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
    from_lines = lines()
    entries = [("this model", from_lines([], [], color=DARK, marker="o", markersize=6.5, linestyle="none"))]
    if original:
        mark = from_lines([], [], color="white", marker="o", markeredgecolor=DARK, markeredgewidth=1.2, markersize=6, linestyle="none")
        entries.insert(0, ("original model", mark))
    if oracle:
        mark = from_lines([], [], color=BRIGHT, marker="|", markersize=11, markeredgewidth=2.2, linestyle="none")
        entries.append(("oracle", mark))
    return key(name, entries)
