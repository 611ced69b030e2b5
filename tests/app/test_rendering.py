"""The HTML of the page: escaped, complete for screen readers, and without an address of another place."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch

from oneshui_hf.app import rendering
from oneshui_hf.app.evaluated import Comparison
from oneshui_hf.app.photos import Photo
from oneshui_hf.app.prediction import LabelBar, PhotoCosts
from oneshui_hf.app.trial import StoredCosts, Trial
from oneshui_hf.app.workbench import Examination
from oneshui_hf.recognition.matching import Calibration, ErrorRate, Match

HOSTILE = "<img src=x onerror=alert(1)>\u202e"
BARS = [LabelBar(HOSTILE, 0.994, 0.2, 0.1, 0.5), *(LabelBar(f"label {number}", 0.5, 0.5, 0.1, 0.6) for number in range(14))]
LOSS = {"labels": "predicted", "loss_before": 0.05, "loss_after": 0.4, "unseen": [0.1, 0.9], "verdict": "like an unseen identity"}
MAPS = (torch.zeros(8, 8), torch.eye(8), -torch.eye(8))


@pytest.fixture
def photo(photo_bytes: Callable[[int], bytes]) -> Photo:
    return Photo.of(photo_bytes(1))


def trial(loss: dict[str, object] = LOSS, **values: object) -> Trial:
    common: dict[str, object] = {"method": "x", "bars": BARS, "loss": loss, "sentence": "Photo: loss.", "maps": MAPS, "samples": None}
    return Trial(**(common | {"stored": None, "seconds": 0.5} | values))  # type: ignore[arg-type]


def require_safe(html: str) -> None:
    assert "<img src=x" not in html
    assert "\u202e" not in html
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", html)
    assert all("alt=" in image for image in re.findall(r"<img[^>]*>", html))
    assert "<script" not in html


def test_a_person_is_named_with_the_rates(photo: Photo) -> None:
    rate = ErrorRate(0.01, 0.05, 60, 300)
    match = Match(HOSTILE, 0.91, 0.2, True, 0.8, 0.05)
    found = Examination(BARS, [HOSTILE], match, Calibration(0.8, 0.05, 40, 0.01, rate), None, None)
    html = rendering.person_on(photo, found, ["a note"])
    require_safe(html)
    assert "The nearest enrolled person:" in html
    assert "0.910" in html
    assert "1 % (at most 5 %, from 60 people)" in html
    unknown = Examination(BARS, [], Match("ada", 0.5, math.inf, False, 0.8, 0.05), found.calibration, None, None)
    assert "No enrolled person matches" in rendering.person_on(photo, unknown, [])
    faceless = Examination(BARS, [], Match(None, math.nan, math.nan, False, 0.8, 0.05), found.calibration, None, None)
    assert "no face was found" in rendering.person_on(photo, faceless, [])
    require_safe(rendering.prediction(found))
    assert "3 more labels" in rendering.prediction(found)


def test_a_trial_shows_values_as_text_too(photo: Photo) -> None:
    samples, stored = PhotoCosts(12, 0.25, 0.5, 0.031, 0.4), StoredCosts(4, "map", [("retain", 90.0, 89.5)])
    html = rendering.trial(photo, trial(samples=samples, stored=stored), 32, [HOSTILE])
    require_safe(html)
    for text in ("Looks like an unseen identity", "&gt;99 %", "25.0 %", "-0.5", "for 4 people", "strongest at the top left"):
        assert text in html, text
    assert "Not measured" in rendering.trial(photo, trial(), 32, [])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"loss_before": 0.3}, "This photo shows no change"),
        ({"verdict": "not yet"}, "Not forgotten yet"),
        ({"verdict": "too much", "loss_after": None}, "Too much"),
        ({"verdict": "unknown", "unseen": None}, "No verdict"),
        ({"verdict": "unknown", "unseen": None, "loss_before": None, "loss_after": None}, "No verdict"),
    ],
)
def test_each_verdict_has_a_headline(photo: Photo, values: dict[str, object], words: str) -> None:
    assert words in rendering.trial(photo, trial(LOSS | values), 32, [])


def test_axis_places_losses_in_proportion() -> None:
    axis = rendering.loss_axis(LOSS)
    assert axis is not None
    length = 0.9 * rendering.AXIS_ROOM
    assert axis["before_at"] == pytest.approx(100 * 0.05 / length, abs=0.01)
    assert axis["band"]["to"] == pytest.approx(100 * 0.9 / length, abs=0.01)
    infinite = rendering.loss_axis(LOSS | {"loss_after": None})
    assert infinite is not None
    assert infinite["after_at"] == 100
    zero = rendering.loss_axis(LOSS | {"loss_before": 0.0, "loss_after": 0.0, "unseen": None})
    assert zero is not None
    assert zero["before_at"] == 0


def test_maps_before_and_after_share_a_scale() -> None:
    before, after, change = rendering.heat_maps((torch.full((8, 8), 0.5), torch.eye(8), torch.eye(8) - 0.5))
    assert before["cells"][0]["opacity"] == pytest.approx(0.5 * rendering.FULL)
    assert after["cells"][0]["opacity"] == pytest.approx(rendering.FULL)
    assert change["cells"][1] == {"sign": "down", "opacity": pytest.approx(rendering.FULL)}
    assert rendering.heat_maps(MAPS[:1] * 3)[0]["cells"][0]["opacity"] == 0


def test_table_of_methods_is_sorted_and_marks_what_is_for_comparison() -> None:
    found = Comparison(
        "t", ["method", "score", "within the noise floor"], [["b", 2.0, ""], ["noise floor", None, ""], [HOSTILE, 1.0, "score"]], []
    )
    html = rendering.comparison_table(found, "score", descending=True)
    require_safe(html)
    assert html.index(">b<") < html.index("&lt;img") < html.index(">noise floor</th>")
    assert html.count('aria-sort="descending"') == 1
    assert html.count("oh-builtin") == 1
    rising = rendering.comparison_table(found, "score", descending=False)
    assert rising.index("&lt;img") < rising.index(">b<") < rising.index(">noise floor</th>")


def test_requests_that_are_overdue_are_marked_in_words() -> None:
    row = {"request": "R-000001", "received": "2026-11-03", "due": "2026-12-03", "state": "received", "days_left": -2}
    html = rendering.requests_table([row | {"overdue": True, "extended": False, "erased": False}])
    assert "overdue</td>" in html
    assert "There are no requests yet" in rendering.requests_table([])


def test_an_error_is_announced_and_escaped() -> None:
    html = rendering.error_box(HOSTILE)
    require_safe(html)
    assert 'role="alert"' in html


def test_the_style_sheet_loads_nothing() -> None:
    css = rendering.stylesheet()
    assert "url(" not in css
    assert "@import" not in css
    assert "http" not in css
