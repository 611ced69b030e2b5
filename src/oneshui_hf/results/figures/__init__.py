"""The figures of a report: numbers in, the text of an SVG out.

Every figure is a small panel of one width, whose letters stay readable on a phone and two abreast on paper; a report lays many beside each
other. The same numbers give the same bytes. Colours differ in lightness as well as in hue, and every mark has a shape of its own, so
that a grey print and a colour-blind reader lose nothing. Text is text (not outlines), measured in a wide font, so that a reader's own
font fits where that one did.
"""

from __future__ import annotations

from .attack_curves import Curve, mean_curve, roc, roc_key
from .cost import Point, cost, cost_key
from .identity_losses import Person, dumbbell_key, dumbbells, loss_limits
from .losses import histogram, histogram_key, shares
from .panel import inline, require_matplotlib

__all__ = [
    "Curve",
    "Person",
    "Point",
    "cost",
    "cost_key",
    "dumbbell_key",
    "dumbbells",
    "histogram",
    "histogram_key",
    "inline",
    "loss_limits",
    "mean_curve",
    "require_matplotlib",
    "roc",
    "roc_key",
    "shares",
]
