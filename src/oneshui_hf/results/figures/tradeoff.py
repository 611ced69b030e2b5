"""The trade-off of unlearning: how much was forgotten against the score that another set lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import OneshuiError
from .labels import write_labels
from .panel import BRIGHT, DARK, MUTED, SHADE, Limits, as_svg, legend, lines, panel, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IDEALS = {"gap_closure": 1.0, "attack": 0.5}  # what the vertical axis may show, and its ideal value
AXES = {"gap_closure": "gap closure (oracle: 1)", "attack": "AUC of the strongest attack"}
RANGES = {"gap_closure": (-0.4, 1.6), "attack": (0.4, 1.0)}  # a value outside is an arrow at the end of the axis
NEAR = 0.08  # of an axis: marks this close to "do nothing" have no label of their own
KINDS = {"do nothing": ("o", "white"), "method": ("o", DARK), "upper": ("s", "white"), "oracle": ("*", BRIGHT)}


@dataclass(frozen=True)
class TradeOff:
    """One model: points of score lost against the original (negative: gained), and its gap closure or attack AUC.

    Attributes:
        label: Its name.
        lost: Points of score.
        forgetting: Gap closure, or AUC of the strongest attack.
        kind: "do nothing", "oracle", "method" (which reads the support image alone) or "upper" (which also reads training data).
    """

    label: str
    lost: float
    forgetting: float
    kind: str


def tradeoff_limits(points: Sequence[TradeOff]) -> Limits:
    """Return the limits of an axis of lost points that panels share.

    The axis contains 2 points on both sides of doing nothing, and every loss up to 10 points. A collapsed model, which may have lost many
    times as much and would compress all others, is drawn at its end.
    """
    lost = [point.lost for point in points if abs(point.lost) <= 10.0]
    low, high = min([-2.0, *lost]), max([2.0, *lost])
    return low - 0.08 * (high - low), high + 0.12 * (high - low)


def tradeoff(
    name: str, title: str, points: Sequence[TradeOff], axis: str, lost: str, limits: Limits, floors: tuple[float | None, float | None]
) -> str:
    """Return a panel of forgetting over lost points: up and left is better. The noise floor is a band around "none lost" and the ideal.

    Args:
        name: The figure's name.
        title: Its title.
        points: The models.
        axis: "gap_closure" or "attack": what `forgetting` is.
        lost: Label of the horizontal axis.
        limits: Ends of the horizontal axis; a larger loss is an arrow at its end.
        floors: Noise floor of the lost points, and of `forgetting`; None where unknown.

    Raises:
        OneshuiError: The names do not fit into the largest panel.
    """
    values = {f"value-{number}": _describe(point, axis) for number, point in enumerate(points)}
    with style():
        for height in range(250, 1200, 60):
            figure, axes = panel(float(height), left=40)
            shown = list(_draw(axes, points, axis, limits, floors))
            axes.set_xlabel(f"{lost} lost, points (less is better)")
            axes.set_ylabel(AXES[axis])
            if write_labels(figure, axes, _labels(axes, points, shown)):
                return as_svg(figure, name, title, f"Trade-off. {'; '.join(values.values())}.", values)
    raise OneshuiError(f"The figure of the trade-off has no room for {len(points)} names; report fewer methods at a time.")


def _labels(axes: Axes, points: Sequence[TradeOff], shown: Sequence[tuple[float, float]]) -> list[tuple[float, float, str]]:
    """Return the labels and their marks. Methods that are hardly distinguishable from doing nothing share its label."""
    width, height = (abs(high - low) for low, high in (axes.get_xlim(), axes.get_ylim()))
    placed = list(zip(points, shown, strict=True))
    origin = next((place for point, place in placed if point.kind == "do nothing"), None)
    near = [
        point.label
        for point, (x, y) in placed
        if origin and point.kind in ("method", "upper") and abs(x - origin[0]) < NEAR * width and abs(y - origin[1]) < NEAR * height
    ]
    shared = f"do nothing and {len(near)} more" if near else "do nothing"
    return [(x, y, shared if point.kind == "do nothing" else point.label) for point, (x, y) in placed if point.label not in near]


def _describe(point: TradeOff, axis: str) -> str:
    what = "gap closure" if axis == "gap_closure" else "attack AUC"
    verb = "gained" if point.lost < 0 else "lost"
    return f"{point.label}: {what} {point.forgetting:.2f}, {abs(point.lost):.1f} points {verb}"


def _draw(
    axes: Axes, points: Sequence[TradeOff], axis: str, limits: Limits, floors: tuple[float | None, float | None]
) -> Iterator[tuple[float, float]]:
    """Draw bands, lines and marks; yield where each mark is drawn."""
    low, high = RANGES[axis]
    values = [min(max(point.forgetting, low), high) for point in points]
    ideal = IDEALS[axis]
    ends = min([*values, ideal, 0.0 if axis == "gap_closure" else ideal]), max([*values, ideal])
    margin = 0.1 * (ends[1] - ends[0])
    axes.set(xlim=limits, ylim=(ends[0] - margin, ends[1] + margin))
    if axis == "attack":
        axes.invert_yaxis()  # up is better in both
    width, height = floors
    if width:
        axes.axvspan(-width, width, facecolor=SHADE, edgecolor="none", zorder=0)
    if height:
        axes.axhspan(ideal - height, ideal + height, facecolor=SHADE, edgecolor="none", zorder=0)
    axes.axvline(0, color=MUTED, linewidth=0.8, zorder=1)
    axes.axhline(ideal, color=BRIGHT, linewidth=1.1, linestyle=(0, (4, 1.5)), zorder=1)
    axes.grid()
    for number, (point, y) in enumerate(zip(points, values, strict=True)):
        marker, face = KINDS[point.kind]
        x, marker = _within(point.lost, limits, marker)
        if y != point.forgetting:
            marker = "^" if (y == high) == (axis == "gap_closure") else "v"
        size = 12.0 if point.kind == "oracle" else 7.0
        edge: dict[str, Any] = {"markeredgecolor": BRIGHT if point.kind == "oracle" else DARK, "markeredgewidth": 1.3}
        axes.plot([x], [y], marker, color=face, markersize=size, **edge, zorder=4, clip_on=False, gid=f"value-{number}")
        yield x, y


def _within(lost: float, limits: Limits, marker: str) -> tuple[float, str]:
    """Return a position on the axis, and an arrow as the marker where the value lies outside."""
    if lost > limits[1]:
        return limits[1], ">"
    return (limits[0], "<") if lost < limits[0] else (lost, marker)


def tradeoff_legend(name: str, points: Sequence[TradeOff], *, floor: bool) -> str:
    """Return the legend of `tradeoff`: the kinds of models that it shows, the ideal, and the noise floor."""
    from matplotlib.patches import Patch

    line = lines()
    labels = {"method": "reads the support image alone", "upper": "also reads training data", "oracle": "oracle (ideal)"}
    entries: list[tuple[str, Any]] = []
    for kind, (marker, face) in KINDS.items():
        if any(point.kind == kind for point in points):
            size, edge = (11.0, BRIGHT) if kind == "oracle" else (6.5, DARK)
            mark = line([], [], marker=marker, color=face, markeredgecolor=edge, markeredgewidth=1.3, markersize=size, linestyle="none")
            entries.append((labels.get(kind, kind), mark))
    entries.append(("ideal forgetting", line([], [], color=BRIGHT, linewidth=1.3, linestyle=(0, (4, 1.5)))))
    if floor:
        entries.append(("noise floor", Patch(facecolor=SHADE, edgecolor=MUTED, linewidth=0.5)))
    return legend(name, entries)
