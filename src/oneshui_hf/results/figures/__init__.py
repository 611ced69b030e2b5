"""The figures of a report: functions from numbers to the text of an SVG.

Every figure is a small panel of one width, readable on a phone and in two columns on paper; a report shows many in a grid. The same
numbers give the same bytes. Colours differ in lightness as well as in hue, and every mark has a distinct shape, so that figures
remain readable in greyscale and for colour-blind readers. Text is stored as text (not outlines) and measured in a wide font, so that the
reader's font also fits.
"""

from __future__ import annotations

from .attack_curves import Curve, average_curves, roc, roc_legend
from .cost import Point, cost, cost_legend
from .identity_losses import PersonLosses, dumbbell_legend, dumbbells, loss_limits
from .losses import histogram, histogram_legend, shares
from .panel import WIDTH, inline, require_matplotlib
from .tradeoff import TradeOff, tradeoff, tradeoff_legend, tradeoff_limits

__all__ = [
    "WIDTH",
    "Curve",
    "PersonLosses",
    "Point",
    "TradeOff",
    "average_curves",
    "cost",
    "cost_legend",
    "dumbbell_legend",
    "dumbbells",
    "histogram",
    "histogram_legend",
    "inline",
    "loss_limits",
    "require_matplotlib",
    "roc",
    "roc_legend",
    "shares",
    "tradeoff",
    "tradeoff_legend",
    "tradeoff_limits",
]
