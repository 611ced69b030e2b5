"""Loss histograms of the forget set and of the test set (unseen identities)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .panel import BRIGHT, DARK, PALE, as_svg, legend, lines, panel, style


def shares(counts: Sequence[float], edges: Sequence[float], onto: Sequence[float]) -> np.ndarray:
    """Return the shares of a histogram in other bins, (b,), which sum to 1. The first and last bin include values outside the range.

    Photos are assumed to be spread evenly within a bin.

    Args:
        counts: Counts of the histogram.
        edges: Its bin edges.
        onto: Edges of the new bins, (b + 1,).
    """
    total = float(np.sum(counts))
    if not total:
        return np.zeros(len(onto) - 1)
    below = np.concatenate([[0.0], np.cumsum(counts)]) / total
    cumulative = np.interp(onto, edges, below)
    cumulative[0], cumulative[-1] = 0.0, 1.0
    return np.diff(cumulative)


def histogram(name: str, title: str, edges: Sequence[float], forget: np.ndarray, test: np.ndarray, top: float, *, open_end: bool) -> str:
    """Return a panel with the share of photos in each loss bin: the forget set as a line, the test set as an area.

    Args:
        name: The figure's name.
        title: Its title.
        edges: Bin edges, (b + 1,).
        forget: Share of the forget set in each bin, (b,).
        test: Share of the test set.
        top: End of the share axis.
        open_end: Whether the last bin also contains larger losses.
    """
    with style():
        figure, axes = panel(118, left=42)
        axes.stairs(test, edges, fill=True, facecolor=PALE, edgecolor="none")
        axes.stairs(test, edges, color=BRIGHT, linewidth=0.8)
        axes.stairs(forget, edges, color=DARK, linewidth=1.9)
        axes.set(xlim=(edges[0], edges[-1]), ylim=(0, top))
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.locator_params(axis="y", nbins=4)
        axes.set_ylabel("share of images")
        axes.set_xlabel("cross-entropy loss per image" + (" (last bin open-ended)" if open_end else ""))
        axes.grid(axis="y")
        middles = (np.asarray(edges[:-1]) + np.asarray(edges[1:])) / 2
        description = f"Losses of photos. Mean loss, from the bins: {middles @ forget:.3g} on forget, {middles @ test:.3g} on test."
        return as_svg(figure, name, title, description)


def histogram_legend(name: str) -> str:
    """Return the legend of `histogram`."""
    from matplotlib.patches import Patch

    forget = lines()([], [], color=DARK, linewidth=1.9)
    test = Patch(facecolor=PALE, edgecolor=BRIGHT, linewidth=0.8)
    return legend(name, [("forget set", forget), ("unseen identities (test)", test)])
