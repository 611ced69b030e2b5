"""What all figures share: one look, a panel, a key of marks, and the way to an SVG of its own."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any
from xml.dom.minidom import Document, parseString

from ...errors import OneshuiError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

WIDTH = 340.0  # of a panel, in points; all lengths here are
TEXT, SMALL = 11.0, 10.0
INK, MUTED = "#1b1f24", "#59626e"
DARK, BRIGHT, PALE = "#0b4a82", "#c8690a", "#f4cf9f"
LINES = ("solid", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (2.5, 3)))

Limits = tuple[float, float]

_LONG = re.compile(r"(\.\d\d)\d+")
_FONTS = "'DejaVu Sans', Verdana, Helvetica, Arial, sans-serif"


def require_matplotlib() -> None:
    """Check that figures can be drawn.

    Raises:
        OneshuiError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise OneshuiError("The figures of a report need matplotlib: install it with `pip install 'oneshui-hf[plots]'`.") from None


@functools.cache
def text_width(text: str, size: float) -> float:
    """Return the width of a line of text in points, in the font that figures are measured with."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    with style():
        return float(TextPath((0, 0), text or " ", prop=FontProperties(family="DejaVu Sans", size=size)).get_extents().width) + 2


def inline(svg: str) -> str:
    """Return an SVG as it stands within an HTML page, which names no address of a namespace."""
    return svg.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)


@contextmanager
def style() -> Iterator[None]:
    """Draw in the look of all figures, as long as the block lasts."""
    from matplotlib import rc_context, rcParamsDefault

    own: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "oneshui", "font.family": ["DejaVu Sans"], "font.size": TEXT, "text.parse_math": False,
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "axes.linewidth": 0.7, "axes.spines.top": False,
        "axes.spines.right": False, "axes.labelsize": SMALL, "axes.axisbelow": True, "xtick.labelsize": SMALL, "ytick.labelsize": SMALL,
        "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "xtick.major.size": 3,
        "ytick.major.size": 3, "grid.color": "#e3e6ea", "grid.linewidth": 0.6, "axes.unicode_minus": True,
    }  # fmt: skip
    # A reader's own matplotlibrc must not change the bytes. The backend is never asked for, and is not to be touched.
    with rc_context({key: value for key, value in rcParamsDefault.items() if not key.startswith(("backend", "interactive"))} | own):
        yield


def panel(inner: float, *, left: float, right: float = 12.0, top: float = 26.0, bottom: float = 38.0) -> tuple[Figure, Axes]:
    """Return a figure with axes of the given inner height, at the same place whatever their labels are."""
    from matplotlib.figure import Figure

    left += 14  # for the label of the axis
    height = inner + top + bottom
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    axes = figure.add_axes((left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, inner / height))
    axes.yaxis.set_label_coords(-(left - 14) / (WIDTH - left - right), 0.5)
    return figure, axes


def lines() -> type[Line2D]:
    """Return the class of marks in a key, once it is needed."""
    from matplotlib.lines import Line2D

    return Line2D


def key(name: str, entries: Sequence[tuple[str, Any]]) -> str:
    """Return the entries of a key, one row after the other, as wide as a panel."""
    from matplotlib.figure import Figure

    with style():
        rows: list[list[tuple[str, Any, float]]] = [[]]
        used = 0.0
        for label, mark in entries:
            width = 30 + text_width(label, SMALL) + 10
            if used + width > WIDTH and rows[-1]:
                rows.append([])
                used = 0.0
            rows[-1].append((label, mark, used))
            used += width
        height = 17.0 * len(rows) + 4
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        for number, row in enumerate(rows):
            for label, mark, start in row:
                figure.legend(
                    [mark], [label], loc="center left", bbox_to_anchor=(start / WIDTH, 1 - (17 * number + 10.5) / height),
                    frameon=False, fontsize=SMALL, handlelength=2.2, handletextpad=0.6, borderpad=0, borderaxespad=0,
                )  # fmt: skip
        return as_svg(figure, name, "", f"Key: {', '.join(label for label, _ in entries)}.")


def as_svg(figure: Figure, name: str, title: str, about: str) -> str:
    """Return a figure as one `<svg>` that says what it shows, with no date, no address that anything fetches and ids of its own."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    if title:
        height = figure.get_figheight() * 72
        most = int(len(title) * 0.86 * WIDTH / text_width(title, TEXT))  # bold letters are wider
        shown = title if len(title) <= most else f"{title[: most - 1]}…"
        figure.text(1 / WIDTH, 1 - 13 / height, shown, fontsize=TEXT + 0.5, fontweight="bold", va="center")
    stream = StringIO()
    FigureCanvasSVG(figure).print_svg(stream, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    words = " ".join(f"{title}. {about}".split()) if title else about
    return _tidy(parseString(stream.getvalue()), name, words) + "\n"


def _tidy(document: Document, name: str, words: str) -> str:
    """Return the text of an SVG's element without what a page would hold twice, or would be wrong within one."""
    root = document.documentElement
    assert root is not None
    for tag in ("metadata", "style"):  # a style sheet would hold for the whole page
        for found in root.getElementsByTagName(tag):
            assert found.parentNode is not None
            found.parentNode.removeChild(found)
    elements = root.getElementsByTagName("*")
    links = [element for element in elements if element.hasAttribute("xlink:href")]
    clipped = [element for element in elements if element.hasAttribute("clip-path")]
    used = {element.getAttribute("xlink:href")[1:] for element in links} | {e.getAttribute("clip-path")[5:-1] for e in clipped}
    for element in elements:
        if element.hasAttribute("id"):
            own = element.getAttribute("id")
            element.removeAttribute("id")
            if own in used:
                element.setAttribute("id", f"{name}-{own}")
        for key in ("d", "x", "y", "transform"):
            if element.hasAttribute(key):
                element.setAttribute(key, _LONG.sub(r"\1", element.getAttribute(key)))
        if "'DejaVu Sans'" in element.getAttribute("style"):
            element.setAttribute("style", element.getAttribute("style").replace("'DejaVu Sans'", _FONTS))
    for element in links:
        element.setAttribute("href", f"#{name}-{element.getAttribute('xlink:href')[1:]}")
        element.removeAttribute("xlink:href")
    for element in clipped:
        element.setAttribute("clip-path", f"url(#{name}-{element.getAttribute('clip-path')[5:-1]})")
    for key in ("xmlns:xlink", "width", "height", "version"):
        if root.hasAttribute(key):
            root.removeAttribute(key)
    look = {"stroke-linejoin": "round", "stroke-linecap": "butt", "role": "img", "aria-label": words}
    for key, value in look.items():
        root.setAttribute(key, value)
    title = document.createElement("title")
    title.appendChild(document.createTextNode(words))
    root.insertBefore(title, root.firstChild)
    return root.toxml()
