"""The report in a browser: no horizontal scrolling, sorting, values under the pointer, and nothing that its policy has to block."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from oneshui_hf import api
from oneshui_hf.runs import with_checksum, write_json
from support.report_rows import row

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs Chromium")]
PROBE = """
<script>
const found = {width: document.documentElement.scrollWidth, window: innerWidth, blocked: window.blocked, orders: []};
const table = document.querySelector("table");
const methods = () => [...table.tBodies[1].rows].slice(1).map((one) => one.cells[0].textContent);
found.orders.push(methods());
const button = table.tHead.rows[0].cells[4].querySelector("button");
for (const _ of [0, 1]) { button.click(); found.orders.push(methods()); }
const mark = document.querySelector("svg .hover path, svg .hover use");
mark.dispatchEvent(new PointerEvent("pointerover", {bubbles: true, clientX: 5, clientY: 90}));
found.tip = document.querySelector(".tip").textContent;
found.shown = !document.querySelector(".tip").hidden;
document.querySelector("h1").dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
found.hidden = document.querySelector(".tip").hidden;
found.display = getComputedStyle(table.tBodies[1].rows[1]).display;
found.page = getComputedStyle(document.documentElement).backgroundColor;
const result = document.createElement("output");
result.textContent = JSON.stringify(found);
document.body.append(result);
</script>
"""
WATCH = '<script>window.blocked = 0; addEventListener("securitypolicyviolation", () => window.blocked++);</script>'


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report whose policy also allows the two scripts of this test."""
    folder = tmp_path_factory.mktemp("benchmark")
    rows = [row("original", 0), row("oracle", 1), row("metaunlearn", 0.9), row("ssd", 0.3), row("pgu", 0.5), row("gradient-ascent", 2.0)]
    for number, entry in enumerate(rows):
        write_json(folder / "rows" / f"{number}.json", with_checksum(entry))
    api.report(folder)
    text = (folder / "report.html").read_text()
    assert text.count("script-src 'sha256-") == 1
    text = re.sub(r"script-src 'sha256-[^']*'", "script-src 'unsafe-inline'", text).replace(
        "<title>Unlearning", f"{WATCH}<title>Unlearning", 1
    )
    return text.replace("</body>", f"{PROBE}</body>")


def probe(html: str, folder: Path, width: int, *flags: str) -> dict[str, Any]:
    page = folder / "page.html"
    page.write_text(html)
    words = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    words += [f"--window-size={width},1000", *flags, "--dump-dom", page.as_uri()]
    dom = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout
    [found] = re.findall(r"<output>(.*?)</output>", dom)
    return json.loads(found)


@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_sorts_and_shows_values(html: str, tmp_path: Path, width: int) -> None:
    found = probe(html, tmp_path, width)
    assert found["width"] <= found["window"]
    assert found["blocked"] == 0
    before, falling, rising = found["orders"]
    assert before == ["metaunlearn", "pgu", "ssd", "gradient-ascent‡"]  # by ToW
    assert falling == before
    assert rising == before[::-1]
    assert found["shown"]
    assert found["hidden"]
    assert re.fullmatch(r"do nothing: gap closure -?0\.0\d, 0\.0 points lost", found["tip"])
    assert found["display"] == ("block" if width == 390 else "table-row")


def test_colours_follow_the_system(html: str, tmp_path: Path) -> None:
    assert probe(html, tmp_path, 1280)["page"] == "rgb(255, 255, 255)"
    assert probe(html, tmp_path, 1280, "--blink-settings=preferredColorScheme=0")["page"] == "rgb(20, 23, 27)"
