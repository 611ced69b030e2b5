"""Mean losses of each person under the original, the model and the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .panel import BRIGHT, DARK, Limits, as_svg, legend, lines, panel, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class PersonLosses:
    """Mean losses on one person's photos under the original, the model and the oracle; None where unknown."""

    original: float | None
    model: float | None
    oracle: float | None


def loss_limits(panels: Sequence[Sequence[PersonLosses]]) -> Limits:
    """Return the limits of a loss axis that panels share.

    The axis contains every loss of the original and of the oracle, with a margin. A degraded model's losses, many times as large, would
    compress all others; they are drawn at the end of the axis.
    """
    people = [person for panel in panels for person in panel]
    known = [loss for p in people for loss in (p.original, p.oracle) if loss is not None]
    models = [p.model for p in people if p.model is not None]
    top = max([0.0, *known, min(max(models, default=0.0), 1.5 * max(known)) if known else max(models, default=0.0)])
    return 0.0, 1.06 * top or 1.0


def dumbbells(name: str, title: str, groups: Mapping[str, Sequence[PersonLosses]], limits: Limits) -> str:
    """Return a panel with one line per person, from the original's loss to the model's, and a mark at the oracle's.

    Args:
        name: The figure's name, unique in a document.
        title: Its title.
        groups: People by label, such as a seed; people of a single group are numbered.
        limits: Ends of the axis; a larger loss is an arrow at its end, labelled with the value.
    """
    count = sum(map(len, groups.values()))
    pitch = max(4.5, min(14.0, 330 / (count + len(groups))))
    is_numbered = len(groups) == 1
    with style():
        figure, axes = panel((count + len(groups) - 1) * pitch + 14, left=34 if is_numbered else 48, right=30)
        size = min(6.0, 0.62 * pitch)
        row, ticks, texts = 0.0, {}, _texts(groups)
        values = {f"value-{number}": text for number, text in enumerate(texts)}
        number = 0
        for label, people in groups.items():
            ticks[row + (len(people) - 1) / 2] = label
            for person in people:
                _dumbbell(axes, row, person, limits, size, f"value-{number}")
                row, number = row + 1, number + 1
            row += 1
        if is_numbered:
            ticks = {float(number): str(number + 1) for number in range(count) if pitch >= 9 or number % 5 == 4 or not number}
            axes.set_ylabel("forget identity")
        axes.set(xlim=limits, ylim=(row - 1.2, -0.8), yticks=list(ticks), yticklabels=list(ticks.values()))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel("mean cross-entropy loss per identity")
        return as_svg(figure, name, title, f"Mean loss per person. {'; '.join(texts)}.", values)


def _dumbbell(axes: Axes, row: float, person: PersonLosses, limits: Limits, size: float, gid: str) -> None:
    low, high = limits
    if person.oracle is not None:
        axes.plot([person.oracle], [row], "|", color=BRIGHT, markersize=1.9 * size, markeredgewidth=2.2, clip_on=False, zorder=2, gid=gid)
    model = person.model
    if person.original is not None and model is not None:
        ends = [person.original, min(model, high)]
        axes.plot(ends, [row, row], color=DARK, linewidth=1.3, alpha=0.55, solid_capstyle="butt", zorder=3, gid=gid)
    if person.original is not None:
        axes.plot(
            [person.original], [row], "o", color="white", markeredgecolor=DARK, markeredgewidth=1.2, markersize=size, zorder=4, gid=gid
        )
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
        gid=gid,
    )
    if model > high and size >= 5:
        axes.text(high + 0.03 * (high - low), row, f"{model:.3g}", fontsize=9, va="center", ha="left", color=DARK, clip_on=False)


def _texts(groups: Mapping[str, Sequence[PersonLosses]]) -> list[str]:
    """Return the losses of each person as text."""
    texts = []
    for label, people in groups.items():
        for number, person in enumerate(people, 1):
            identity = f"{label}, person {number}" if label else f"person {number}"
            losses = {"before": person.original, "after": person.model, "oracle": person.oracle}
            texts.append(f"{identity}: " + ", ".join(f"{loss:.3g} {when}" for when, loss in losses.items() if loss is not None))
    return texts


def dumbbell_legend(name: str, *, original: bool, oracle: bool) -> str:
    """Return the legend of the marks of `dumbbells` that are used."""
    from_lines = lines()
    entries = [("this model", from_lines([], [], color=DARK, marker="o", markersize=6.5, linestyle="none"))]
    if original:
        mark = from_lines([], [], color="white", marker="o", markeredgecolor=DARK, markeredgewidth=1.2, markersize=6, linestyle="none")
        entries.insert(0, ("original model", mark))
    if oracle:
        mark = from_lines([], [], color=BRIGHT, marker="|", markersize=11, markeredgewidth=2.2, linestyle="none")
        entries.append(("oracle", mark))
    return legend(name, entries)
