"""How the losses of photos lie: of the people who asked, over those of strangers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .panel import BRIGHT, DARK, PALE, as_svg, key, lines, panel, style


def shares(counts: Sequence[float], edges: Sequence[float], onto: Sequence[float]) -> np.ndarray:
    """Return the shares of a histogram in other bins, (b,), summing to 1: the first and the last take what lies beyond.

    Within a bin the photos are taken to be spread evenly.
    """
    total = float(np.sum(counts))
    if not total:
        return np.zeros(len(onto) - 1)
    below = np.concatenate([[0.0], np.cumsum(counts)]) / total
    reached = np.interp(onto, edges, below)
    reached[0], reached[-1] = 0.0, 1.0
    return np.diff(reached)


def histogram(name: str, title: str, edges: Sequence[float], forget: np.ndarray, test: np.ndarray, top: float, *, open_end: bool) -> str:
    """Return a panel with the share of photos at each loss, of the people who asked over that of strangers.

    Args:
        name: The figure's name.
        title: What stands above it.
        edges: Of the bins, (b + 1,).
        forget: Share of the forget set in each bin, (b,).
        test: Share of the test set.
        top: End of the axis of shares.
        open_end: Whether the last bin also holds what lies beyond it.
    """
    with style():
        figure, axes = panel(118, left=42)
        axes.stairs(test, edges, fill=True, facecolor=PALE, edgecolor="none")
        axes.stairs(test, edges, color=BRIGHT, linewidth=0.8)
        axes.stairs(forget, edges, color=DARK, linewidth=1.9)
        axes.set(xlim=(edges[0], edges[-1]), ylim=(0, top))
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.locator_params(axis="y", nbins=4)
        axes.set_xlabel("loss on a photo" + (", the last bin open-ended" if open_end else ""))
        axes.grid(axis="y")
        middles = (np.asarray(edges[:-1]) + np.asarray(edges[1:])) / 2
        about = f"Losses of photos. Mean loss, by bins: {middles @ forget:.3g} on forget, {middles @ test:.3g} on test."
        return as_svg(figure, name, title, about)


def histogram_key(name: str) -> str:
    """Return the key of `histogram`."""
    from matplotlib.patches import Patch

    forget = lines()([], [], color=DARK, linewidth=1.9)
    test = Patch(facecolor=PALE, edgecolor=BRIGHT, linewidth=0.8)
    return key(name, [("forget: who asked", forget), ("test: strangers", test)])
