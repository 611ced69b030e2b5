"""The figures of a report: standalone SVG, the same bytes for the same numbers, and correct numbers."""

from __future__ import annotations

import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from oneshui_hf.errors import OneshuiError
from oneshui_hf.results import figures
from oneshui_hf.results.figures import Curve, PersonLosses, Point, labels
from oneshui_hf.results.figures.panel import WIDTH

NS = "{http://www.w3.org/2000/svg}"
PEOPLE = [PersonLosses(0.1, 0.5, 0.6), PersonLosses(0.2, None, 0.5), PersonLosses(None, 9.5, None)]


def draw_all() -> dict[str, str]:
    curves = {"loss": Curve([0, 0, 0.5, 1], [0, 0.5, 0.75, 1], 0.1), "RMIA": Curve([0, 1], [0, 1], 0.1)}
    shares = np.full(4, 0.25)
    points = [Point("fast", 0.1, 90.0, True), Point("slow", 10.0, 95.0, False)]
    return {
        "people": figures.dumbbells("people", "a method", {"": PEOPLE}, (0, 1)),
        "key-people": figures.dumbbell_legend("key-people", original=True, oracle=True),
        "losses": figures.histogram("losses", "a method", [0, 1, 2, 3, 4], shares, shares, 0.5, open_end=True),
        "key-losses": figures.histogram_legend("key-losses"),
        "attacks": figures.roc("attacks", "a method", curves, ["loss", "RMIA"], "loss", 0.02),
        "key-attacks": figures.roc_legend("key-attacks", ["loss", "RMIA"]),
        "cost": figures.cost("cost", "Cost", points, {"do nothing": 85.0}, (80, 100)),
        "key-cost": figures.cost_legend("key-cost", points, ["do nothing"]),
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return draw_all()


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{NS}text")]


def test_every_figure_is_one_element_with_alternative_text(drawn: dict[str, str]) -> None:
    for svg in drawn.values():
        root = ElementTree.fromstring(svg)
        title = root.find(f"{NS}title")
        assert root.tag == f"{NS}svg"
        assert title is not None
        assert root.get("role") == "img"
        assert len(title.text or "") > 10
        assert root.get("aria-label") == title.text
        assert root.get("viewBox")
        assert root.get("width") is None


def test_figures_have_no_links_or_dates_and_unique_ids(drawn: dict[str, str]) -> None:
    seen: set[str] = set()
    for name, svg in drawn.items():
        assert svg.count("http") == 1  # the namespace
        assert "http" not in figures.inline(svg)
        assert not re.search(r"<(style|metadata|script|image)|20\d\d-", svg)
        ids = set(re.findall(r'\bid="([^"]*)"', svg))
        used = set(re.findall(r'href="#([^"]*)"', svg)) | set(re.findall(r"url\(#([^)]*)\)", svg))
        assert used == ids
        assert all(one.startswith(f"{name}-") for one in ids)
        assert not seen & ids
        seen |= ids


def test_same_numbers_give_the_same_bytes_for_any_matplotlib_settings(drawn: dict[str, str]) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": None, "font.size": 30, "lines.linewidth": 9, "svg.fonttype": "path", "axes.grid": True}):
        before = dict(matplotlib.rcParams)
        assert draw_all() == drawn
        assert dict(matplotlib.rcParams) == before


def test_importing_figures_imports_no_matplotlib() -> None:
    code = "import sys, oneshui_hf.results.figures; assert not {'matplotlib', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_matplotlib_is_an_error_of_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OneshuiError, match=r"oneshui-hf\[plots\]"):
        figures.require_matplotlib()


def test_labels_are_escaped_text() -> None:
    label = '<script>alert(1)</script> $x^2$ "a" & _b'
    svg = figures.dumbbells("people", label, {"": PEOPLE}, (0, 1))
    assert "<script>" not in svg
    assert any(text.startswith("<script>alert(1)</script> $x") for text in texts(svg))
    short = [text for text in texts(figures.dumbbells("people", "m" * 90, {"": PEOPLE}, (0, 1))) if text.startswith("mm")]
    assert short[0].endswith("…")


def test_alternative_text_contains_every_number(drawn: dict[str, str]) -> None:
    text = ElementTree.fromstring(drawn["people"]).get("aria-label") or ""
    assert "person 1: 0.1 before, 0.5 after, 0.6 oracle" in text
    assert "person 2: 0.2 before, 0.5 oracle" in text
    assert "person 3: 9.5 after" in text


def test_people_are_numbered_and_a_loss_beyond_the_axis_is_labelled(drawn: dict[str, str]) -> None:
    assert {"1", "2", "3", "9.5"} <= set(texts(drawn["people"]))
    seeds = figures.dumbbells("people", "a method", {"seed 0": PEOPLE, "seed 1": PEOPLE}, (0, 1))
    assert {"seed 0", "seed 1"} <= set(texts(seeds))


def test_loss_axis_does_not_depend_on_a_degraded_model() -> None:
    normal, degraded = [PersonLosses(0.1, 0.5, 0.6)], [PersonLosses(0.1, 500.0, 0.6)]
    low, high = figures.loss_limits([normal, degraded])
    assert low == 0
    assert 0.6 < high < 1.2
    assert figures.loss_limits([[PersonLosses(None, 4.0, None)]])[1] > 4
    assert figures.loss_limits([[PersonLosses(None, None, None)]]) == (0, 1)


def test_shares_match_those_of_the_photos() -> None:
    rng = np.random.default_rng(0)
    losses = rng.uniform(0, 4, 400)
    fine, coarse = np.linspace(0, 4, 41), np.linspace(0, 4, 9)
    counted = np.histogram(losses, fine)[0]
    expected = np.histogram(losses, coarse)[0] / 400
    np.testing.assert_allclose(figures.shares(counted, fine, coarse), expected, atol=1e-12)
    cut = figures.shares(counted, fine, [0, 1, 2])  # the last bin includes larger losses
    np.testing.assert_allclose(cut, [(losses < 1).mean(), (losses >= 1).mean()], atol=1e-12)
    assert figures.shares([0, 0], [0, 1, 2], [0, 1, 2]).tolist() == [0, 0]


def test_area_of_the_average_curve_is_the_mean_area() -> None:
    """The area is linear, so the average curve has the mean area; expected areas are counted pair by pair."""
    rng = np.random.default_rng(1)
    curves, areas = [], []
    for shift in (0.0, 1.0, 2.0):
        members, others = rng.normal(shift, 1, 13).round(1), rng.normal(0, 1, 17).round(1)  # with ties
        steps = np.concatenate([[np.inf], np.unique(np.concatenate([members, others]))[::-1]])
        curves.append(Curve([float((others >= s).mean()) for s in steps], [float((members >= s).mean()) for s in steps], 1 / 17))
        wins = (members[:, None] > others).mean() + (members[:, None] == others).mean() / 2
        areas.append(wins)
    mean = figures.average_curves(curves)
    assert np.trapezoid(mean.tpr, mean.fpr) == pytest.approx(np.mean(areas), abs=1e-12)
    assert mean.smallest_fpr == 1 / 17
    single = figures.average_curves(curves[:1])
    assert np.trapezoid(single.tpr, single.fpr) == pytest.approx(areas[0], abs=1e-12)


def test_unresolved_fpr_range_is_labelled(drawn: dict[str, str]) -> None:
    assert "not resolved" in texts(drawn["attacks"])
    assert "does not resolve an FPR below 0.1" in drawn["attacks"]
    assert "loss (strongest) 55 %" in drawn["attacks"]  # at 10 % FPR: TPR rises from 50 % at 0 to 75 % at 50 %


@pytest.mark.parametrize("count", [1, 13, 30])
def test_names_overlap_neither_each_other_nor_a_mark(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(count)
    points = [Point(f"a-rather-long-name-{n}", 10 ** rng.normal(0, 0.2), rng.normal(95, 0.5), bool(n % 2)) for n in range(count)]
    placed, marks = [], []
    place_name = labels.place_name

    def spy(*arguments: object) -> object:
        found = place_name(*arguments)  # type: ignore[arg-type]
        if len(arguments[3]) == 0:  # type: ignore[arg-type]  # the first name of a new attempt
            placed.clear()
        marks[:] = arguments[5]  # type: ignore[call-overload]
        if found is not None:
            placed.append(found[0])
        return found

    monkeypatch.setattr(labels, "place_name", spy)
    svg = figures.cost("cost", "Cost", points, {}, (90, 100))
    assert {point.label for point in points} <= set(texts(svg))
    assert len(placed) == len(marks) == count
    boxes = np.array([*placed, *marks])
    for number, (left, bottom, right, top) in enumerate(boxes[:count]):
        others = np.delete(boxes, number, axis=0)
        overlaps = (others[:, 0] < right) & (left < others[:, 2]) & (others[:, 1] < top) & (bottom < others[:, 3])
        assert not overlaps.any()
        assert left >= 0
        assert right <= WIDTH


# Trade-off, values under the pointer, colours of a page


TRADE_OFFS = [
    figures.TradeOff("do nothing", 0.0, 0.0, "do nothing"),
    figures.TradeOff("oracle", 0.4, 1.0, "oracle"),
    figures.TradeOff("ssd", 0.9, 0.5, "method"),
    figures.TradeOff("scrub", -0.6, 1.2, "upper"),
    figures.TradeOff("collapsed", 40.0, 3.0, "method"),
]


def test_collapsed_model_does_not_compress_the_trade_off() -> None:
    low, high = figures.tradeoff_limits(TRADE_OFFS)
    assert (low, high) == figures.tradeoff_limits(TRADE_OFFS[:-1])
    assert -2.5 < low < -0.6
    assert 0.9 < high < 3
    assert figures.tradeoff_limits([figures.TradeOff("x", 8.0, 0.5, "method")])[1] > 8


def test_trade_off_states_every_value_and_labels_every_model() -> None:
    limits = figures.tradeoff_limits(TRADE_OFFS)
    svg = figures.tradeoff("t", "Retain", TRADE_OFFS, "gap_closure", "retain mAP", limits, (0.5, 0.1))
    assert {point.label for point in TRADE_OFFS} <= set(texts(svg))
    titles = [element.text for element in ElementTree.fromstring(svg).iter(f"{NS}title")][1:]
    assert titles == [
        "do nothing: gap closure 0.00, 0.0 points lost",
        "oracle: gap closure 1.00, 0.4 points lost",
        "ssd: gap closure 0.50, 0.9 points lost",
        "scrub: gap closure 1.20, 0.6 points gained",
        "collapsed: gap closure 3.00, 40.0 points lost",
    ]


def test_methods_next_to_doing_nothing_share_its_label() -> None:
    near = [figures.TradeOff("jit", 0.05, 0.02, "method"), figures.TradeOff("pgu", -0.05, 0.0, "method")]
    limits = figures.tradeoff_limits(TRADE_OFFS)
    svg = figures.tradeoff("t", "Retain", [*TRADE_OFFS, *near], "gap_closure", "retain mAP", limits, (None, None))
    assert {"do nothing and 2 more", "ssd", "scrub", "oracle"} <= set(texts(svg))
    assert not {"do nothing", "jit", "pgu"} & set(texts(svg))
    assert "jit: gap closure 0.02, 0.1 points lost" in svg, "each mark has its values"


def test_noise_floor_is_a_band_of_its_width() -> None:
    """The shaded rectangles of a narrow and a wide floor differ by the factor of the floors."""

    def width(floor: float) -> float:
        svg = figures.tradeoff("t", "Retain", TRADE_OFFS, "gap_closure", "mAP", (-3.0, 3.0), (floor, None))
        [band] = [path for path in ElementTree.fromstring(svg).iter(f"{NS}path") if "#e9ecf0" in path.get("style", "")]
        xs = [float(x) for x in re.findall(r"[ML] ([\d.]+)", band.get("d", ""))]
        return max(xs) - min(xs)

    assert width(1.0) == pytest.approx(2 * width(0.5), abs=0.1)
    none = figures.tradeoff("t", "Retain", TRADE_OFFS, "gap_closure", "mAP", (-3.0, 3.0), (None, None))
    assert "#e9ecf0" not in none


def test_marks_have_values_for_the_pointer(drawn: dict[str, str]) -> None:
    for name, expected in {"people": "person 3: 9.5 after", "attacks": "loss (strongest) 55 %", "cost": "fast: 0.1 s, ToW 90.0"}.items():
        groups = [element for element in ElementTree.fromstring(drawn[name]).iter(f"{NS}g") if element.get("class") == "hover"]
        assert expected in [title.text for group in groups for title in group.findall(f"{NS}title")]


def test_page_may_replace_every_colour(drawn: dict[str, str]) -> None:
    for svg in drawn.values():
        inlined = figures.inline(svg)
        assert not re.search(r"(fill|stroke): #", inlined)
        restored = re.sub(r"var\(--figure-[a-z0-9-]+, (#[0-9a-f]{6})\)", r"\1", inlined)
        assert re.findall(r"#[0-9a-f]{6}", restored) == re.findall(r"#[0-9a-f]{6}", svg)
