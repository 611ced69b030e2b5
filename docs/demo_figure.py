"""Draw the figure of the README from the runs of `oneshui demo`: mAP of the original, the unlearned models and the oracle on each set.

oneshui demo
python docs/demo_figure.py demo docs/images/demo.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

from oneshui_hf import Run
from oneshui_hf.results.figures.panel import BRIGHT, DARK, as_svg, lines, panel, style

METHODS = ("forget-keys", "gradient-ascent", "metaunlearn")
SETS = ("forget", "retain", "test")
PITCH = 15.0  # points from row to row


def main(folder: Path, target: Path) -> None:
    """Write the figure of the runs in a folder."""
    original, oracle = (scores(folder / name) for name in ("original", "original-oracle"))
    with style():
        figure, axes = panel((4 * len(METHODS) - 1) * PITCH, left=132, top=44)
        ticks, texts = {}, []
        for group, method in enumerate(METHODS):
            unlearned = scores(folder / f"original-{method}")
            for place, name in enumerate(SETS):
                row = 4 * group + place
                before, after, ideal = original[name], unlearned[name], oracle[name]
                axes.plot([before, after], [row, row], color=DARK, linewidth=1.3, alpha=0.55, zorder=2)
                axes.plot(ideal, row, "|", color=BRIGHT, markersize=12, markeredgewidth=2.2, zorder=3)
                axes.plot(before, row, "o", color="white", markeredgecolor=DARK, markeredgewidth=1.2, markersize=6, zorder=4)
                axes.plot(after, row, "o", color=DARK, markersize=6.5, markeredgewidth=0, zorder=5)
                ticks[row] = f"{method}: {name}" if place == 0 else name
                texts.append(f"{method}, {name}: original {before:.1f}, unlearned {after:.1f}, oracle {ideal:.1f}")
        axes.set(xlim=(55, 100), ylim=(4 * len(METHODS) - 1.4, -0.8), yticks=list(ticks), yticklabels=list(ticks.values()))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel("mAP in percent")
        line = lines()
        marks = [
            line([], [], color="white", marker="o", markeredgecolor=DARK, markeredgewidth=1.2, markersize=6, linestyle="none"),
            line([], [], color=DARK, marker="o", markersize=6.5, linestyle="none"),
            line([], [], color=BRIGHT, marker="|", markersize=11, markeredgewidth=2.2, linestyle="none"),
        ]
        names = ("original", "unlearned", "oracle")
        figure.legend(
            marks, names, loc="upper left", bbox_to_anchor=(0, 0.93), ncols=3, frameon=False, fontsize=10, columnspacing=1, handlelength=1
        )
        svg = as_svg(figure, "demo", "Four generated people are forgotten", "; ".join(texts) + ".")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(svg.replace("<svg ", '<svg style="background: white" ', 1), encoding="utf-8")


def scores(run: Path) -> dict[str, float]:
    """Return the mAP of each set of an evaluated run, in percent."""
    metrics = Run.open(run).metrics or {}
    return {name: metrics[name]["map"] for name in SETS}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
