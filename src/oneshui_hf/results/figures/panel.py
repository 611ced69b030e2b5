"""Shared parts of all figures: style, panel, legend, and export to a standalone SVG."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any
from xml.dom.minidom import Document, Element, parseString

from ...errors import OneshuiError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

WIDTH = 340.0  # of a panel; all lengths are in points
TEXT, SMALL = 11.0, 10.0
INK, MUTED = "#1b1f24", "#59626e"
DARK, BRIGHT, PALE = "#0b4a82", "#c8690a", "#f4cf9f"
SHADE, GRID, PAPER = "#e9ecf0", "#e3e6ea", "#ffffff"
GREYS = ("#8a6a3f", "#6d7683", "#9a5a14", "#454c56", "#a07f55")  # of attacks that are not the strongest
PALETTE = {  # names of the custom properties with which a page may replace the colours of inline figures
    **{"ink": INK, "muted": MUTED, "dark": DARK, "bright": BRIGHT, "pale": PALE, "shade": SHADE, "grid": GRID, "paper": PAPER},
    **{f"grey-{number}": grey for number, grey in enumerate(GREYS, 1)},
}
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
    """Return an SVG for use inside an HTML page: without the XML namespace, and with colours that the page's style sheet may replace.

    A colour such as INK becomes `var(--figure-ink, #1b1f24)`. The title of the figure, which browsers would show wherever the pointer is,
    stays as `aria-label` only.
    """
    svg = re.sub("<title>.*?</title>", "", svg.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1), count=1, flags=re.DOTALL)
    for name, color in PALETTE.items():
        svg = re.sub(rf"(fill|stroke): {color}\b", rf"\1: var(--figure-{name}, {color})", svg)
    return svg


@contextmanager
def style() -> Iterator[None]:
    """Apply the style of all figures within the block."""
    from matplotlib import rc_context, rcParamsDefault

    settings: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "oneshui", "font.family": ["DejaVu Sans"], "font.size": TEXT, "text.parse_math": False,
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "axes.linewidth": 0.7, "axes.spines.top": False,
        "axes.spines.right": False, "axes.labelsize": SMALL, "axes.axisbelow": True, "xtick.labelsize": SMALL, "ytick.labelsize": SMALL,
        "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "xtick.major.size": 3,
        "ytick.major.size": 3, "grid.color": GRID, "grid.linewidth": 0.6, "axes.unicode_minus": True,
    }  # fmt: skip
    # A user's matplotlibrc must not change the bytes. The backend is not used and must stay as it is.
    with rc_context({key: value for key, value in rcParamsDefault.items() if not key.startswith(("backend", "interactive"))} | settings):
        yield


def panel(inner: float, *, left: float, right: float = 12.0, top: float = 26.0, bottom: float = 38.0) -> tuple[Figure, Axes]:
    """Return a figure with axes of the given inner height, whose position does not depend on their labels."""
    from matplotlib.figure import Figure

    left += 14  # for the label of the axis
    height = inner + top + bottom
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    axes = figure.add_axes((left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, inner / height))
    axes.yaxis.set_label_coords(-(left - 14) / (WIDTH - left - right), 0.5)
    return figure, axes


def lines() -> type[Line2D]:
    """Return the class of legend marks; matplotlib is imported when it is needed."""
    from matplotlib.lines import Line2D

    return Line2D


def legend(name: str, entries: Sequence[tuple[str, Any]]) -> str:
    """Return a legend as wide as a panel, its entries in as many rows as needed."""
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
        return as_svg(figure, name, "", f"Legend: {', '.join(label for label, _ in entries)}.")


def as_svg(figure: Figure, name: str, title: str, description: str, values: Mapping[str, str] | None = None) -> str:
    """Return a figure as one `<svg>` with alternative text, without a date or external links, and with unique ids.

    Args:
        figure: The figure.
        name: Its name, unique in a document.
        title: Its title.
        description: Its alternative text.
        values: What is shown when the pointer is over a mark, by the `gid` of the mark.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    if title:
        height = figure.get_figheight() * 72
        most = int(len(title) * 0.86 * WIDTH / text_width(title, TEXT))  # bold text is wider
        shown = title if len(title) <= most else f"{title[: most - 1]}…"
        figure.text(1 / WIDTH, 1 - 13 / height, shown, fontsize=TEXT + 0.5, fontweight="bold", va="center")
    stream = StringIO()
    FigureCanvasSVG(figure).print_svg(stream, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = " ".join(f"{title}. {description}".split()) if title else description
    return _clean(parseString(stream.getvalue()), name, text, values or {}) + "\n"


def _clean(document: Document, name: str, text: str, values: Mapping[str, str]) -> str:
    """Return the text of an SVG's root element without parts that would be duplicated or invalid inside a page."""
    root = document.documentElement
    assert root is not None
    for tag in ("metadata", "style"):  # a style sheet would apply to the whole page
        for element in root.getElementsByTagName(tag):
            assert element.parentNode is not None
            element.parentNode.removeChild(element)
    elements = root.getElementsByTagName("*")
    links = [element for element in elements if element.hasAttribute("xlink:href")]
    clipped = [element for element in elements if element.hasAttribute("clip-path")]
    used = {element.getAttribute("xlink:href")[1:] for element in links} | {e.getAttribute("clip-path")[5:-1] for e in clipped}
    for element in elements:
        if element.hasAttribute("id"):
            identifier = element.getAttribute("id")
            element.removeAttribute("id")
            if identifier in used:
                element.setAttribute("id", f"{name}-{identifier}")
            if identifier in values:
                element.setAttribute("class", "hover")
                element.insertBefore(_title(document, values[identifier]), element.firstChild)
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
    attributes = {"stroke-linejoin": "round", "stroke-linecap": "butt", "role": "img", "aria-label": text}
    for key, value in attributes.items():
        root.setAttribute(key, value)
    root.insertBefore(_title(document, text), root.firstChild)
    return root.toxml()


def _title(document: Document, text: str) -> Element:
    """Return a title, which browsers show when the pointer is over its parent."""
    title = document.createElement("title")
    title.appendChild(document.createTextNode(text))
    return title
