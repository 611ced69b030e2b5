"""The scores of each set before and after unlearning, and those of the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .panel import BRIGHT, DARK, as_svg, legend, lines, panel, style

PITCH = 15.0  # points from row to row


@dataclass(frozen=True)
class SetScores:
    """Scores of one set in percent, under the original, the unlearned model and the oracle; None where unknown."""

    original: float | None
    unlearned: float
    oracle: float | None


def set_scores(name: str, title: str, methods: Mapping[str, Mapping[str, SetScores]], score: str) -> str:
    """Return a panel with one line for each set of each method, from the original's score to the method's, and a mark at the oracle's.

    Args:
        name: The figure's name.
        title: Its title.
        methods: By method and set.
        score: The name of the score.
    """
    rows = [(method, place, of_set, scores) for method, sets in methods.items() for place, (of_set, scores) in enumerate(sets.items())]
    texts = {f"value-{number}": _describe(method, of_set, scores) for number, (method, _, of_set, scores) in enumerate(rows)}
    known = [value for *_, scores in rows for value in (scores.original, scores.unlearned, scores.oracle) if value is not None]
    with style():
        figure, axes = panel((len(rows) + len(methods) - 1) * PITCH, left=132)
        ticks: dict[float, str] = {}
        row = -1.0
        for number, (method, place, of_set, scores) in enumerate(rows):
            row += 1 if place or not number else 2  # a gap between methods
            gid = f"value-{number}"
            if scores.original is not None:
                axes.plot([scores.original, scores.unlearned], [row, row], color=DARK, linewidth=1.3, alpha=0.55, zorder=2, gid=gid)
                axes.plot(
                    [scores.original], [row], "o", color="white", markeredgecolor=DARK, markeredgewidth=1.2, markersize=6, zorder=4, gid=gid
                )
            if scores.oracle is not None:
                axes.plot([scores.oracle], [row], "|", color=BRIGHT, markersize=12, markeredgewidth=2.2, zorder=3, gid=gid)
            axes.plot([scores.unlearned], [row], "o", color=DARK, markersize=6.5, markeredgewidth=0, zorder=5, gid=gid)
            ticks[row] = of_set if place else f"{method}: {of_set}"
        margin = 0.06 * max(max(known) - min(known), 5.0)
        axes.set(xlim=(min(known) - margin, max(known) + margin), ylim=(row + 0.6, -0.8))
        axes.set_yticks(list(ticks), list(ticks.values()))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel(f"{score}, %")
        return as_svg(figure, name, title, f"{'; '.join(texts.values())}.", texts)


def _describe(method: str, of_set: str, scores: SetScores) -> str:
    values = {"original": scores.original, "unlearned": scores.unlearned, "oracle": scores.oracle}
    return f"{method}, {of_set}: " + ", ".join(f"{model} {value:.1f}" for model, value in values.items() if value is not None)


def set_scores_legend(name: str) -> str:
    """Return the legend of `set_scores`."""
    line = lines()
    marks = {
        "original": line([], [], color="white", marker="o", markeredgecolor=DARK, markeredgewidth=1.2, markersize=6, linestyle="none"),
        "unlearned": line([], [], color=DARK, marker="o", markersize=6.5, linestyle="none"),
        "oracle": line([], [], color=BRIGHT, marker="|", markersize=11, markeredgewidth=2.2, linestyle="none"),
    }
    return legend(name, list(marks.items()))
