"""The whole walk in headless Chromium, at both widths: give a photo, try, forget, answer; nothing is fetched and nothing is left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import oneshui_hf
from oneshui_hf.app.server import serving
from oneshui_hf.reporting import SILENT
from oneshui_hf.runs import Run
from oneshui_hf.stages.app_options import AppOptions
from support.served import require_gradio

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Chromium and its driver")]
METHOD, WAIT = "gradient-ascent", 120
NAMELESS = """
const named = part => part.innerText.trim() || part.getAttribute('aria-label') || part.title || part.labels?.[0]?.innerText.trim()
  || document.getElementById(part.getAttribute('aria-labelledby'))?.innerText;
return [...document.querySelectorAll('button, input:not([type=file]), textarea, a')]
  .filter(part => part.offsetParent && !named(part)).map(part => part.outerHTML.slice(0, 120));
"""
LUMINANCE = """
const [red, green, blue] = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number);
return (red + green + blue) / 3;
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A model of the demo's data, trained for two epochs."""
    folder = tmp_path_factory.mktemp("demo")
    return oneshui_hf.train(dataset="synthetic", forget=2, epochs=2, batch_size=64, optimizer="adamw", lr=1e-3, keep="last",
                            output_dir=str(folder / "original"))  # fmt: skip


@pytest.fixture
def served(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    require_gradio()
    import tempfile

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "vault"))
    copy = Run.open(shutil.copytree(run.path, tmp_path / "runs" / "original"))
    with serving(copy, AppOptions(desk=str(tmp_path / "desk")), SILENT) as address:
        yield address
    assert not list(temporary.iterdir())


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Callable[[int, bool], Any]]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install 'oneshui-hf[dev]'")
    opened: list[Any] = []

    def open_browser(width: int, dark: bool = False) -> Any:
        options = webdriver.ChromeOptions()
        options.binary_location = str(BROWSER)
        for flag in (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path / 'profile'}",
        ):
            options.add_argument(flag)
        options.add_argument("--use-fake-device-for-media-stream")
        options.add_argument("--use-fake-ui-for-media-stream")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
        opened.append(driver)
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        return driver

    yield open_browser
    for driver in opened:
        driver.quit()


class Walk:
    """What a visitor does on the page."""

    def __init__(self, driver: Any, address: str, shots: Path) -> None:
        self.driver, self.address, self._shots = driver, address, shots
        driver.get(address)
        self.wait("#oh-method label")

    def wait(self, css: str, text: str = "") -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        def shown(driver: Any) -> Any:
            return next((part for part in driver.find_elements("css selector", css) if part.is_displayed() and text in part.text), None)

        return WebDriverWait(self.driver, WAIT).until(shown, f"{css} {text}")

    def click(self, css: str, text: str = "") -> None:
        part = self.wait(css, text)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].click()", part)

    def press(self, css: str) -> None:
        """Press a button with the keyboard, as somebody without a mouse does."""
        from selenium.webdriver.common.keys import Keys

        self.driver.execute_script("arguments[0].focus()", self.wait(css))
        self.driver.switch_to.active_element.send_keys(Keys.ENTER)

    def tab(self, number: int) -> None:
        self.driver.execute_script("document.querySelectorAll('button[role=tab]')[arguments[0]].click()", number)

    def check(self, name: str) -> None:
        """Check the page as it is now, and keep a picture."""
        width = self.driver.execute_script("return innerWidth")
        self.driver.save_screenshot(str(self._shots / f"{name}-{width}.png"))
        assert self.driver.execute_script("return document.documentElement.scrollWidth") <= width, name
        assert self.driver.execute_script(NAMELESS) == [], name

    def foreign(self) -> set[str]:
        """The addresses elsewhere that the page has asked for."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = {message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"}
        return {url for url in asked if url.startswith(("http:", "https:", "ws:", "wss:")) and not url.startswith(self.address)}


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_visitor_tries_and_forgets(served: str, browser: Callable[..., Any], tmp_path: Path, width: int, dark: bool) -> None:
    walk = Walk(browser(width, dark), served, tmp_path)
    assert (walk.driver.execute_script(LUMINANCE) < 128) == dark
    walk.check("start")
    walk.press("#oh-forget")
    walk.wait(".oh-message", "Give a photo first.")
    walk.press("#oh-example")
    walk.wait(".oh-bars")
    walk.check("photo")
    walk.press("#oh-try")
    walk.wait(".oh-maps")
    walk.check("trial")
    assert not (tmp_path / "desk").exists()

    walk.press("#oh-forget")
    walk.press("#oh-continue")
    walk.wait(".oh-message", "State first that you have checked")
    walk.click("#oh-checked input")
    walk.press("#oh-continue")
    walk.check("question")
    walk.press("#oh-now")
    walk.wait(".oh-card", "Request R-000001 is applied")
    walk.press("#oh-serve")
    walk.wait(".oh-card", "Request R-000001 is answered")
    walk.check("letter")
    assert len(walk.driver.find_elements("css selector", "a.oh-button[download][href^='data:']")) == 3
    walk.tab(1)
    walk.wait(".oh-card", "R-000001")
    walk.check("requests")
    walk.tab(2)
    walk.wait(".oh-card", "No run next to")
    walk.check("methods")
    assert walk.foreign() == set()


def test_a_file_and_the_camera_give_a_photo_and_a_wrong_file_a_sentence(
    served: str, browser: Callable[..., Any], photo_file: Path, tmp_path: Path
) -> None:
    walk = Walk(browser(1280), served, tmp_path)
    choose = "#oh-photo input[type=file]"
    walk.driver.find_element("css selector", choose).send_keys(str(photo_file))
    walk.wait(".oh-bars")
    wrong = tmp_path / "wrong.png"
    wrong.write_bytes(b"no photo")
    walk.driver.find_element("css selector", choose).send_keys(str(wrong))
    walk.wait(".oh-message", "The photo is not an image that can be read")
    walk.click("#oh-photo button[aria-label='Capture from camera']")
    walk.click("#oh-photo button", "Access Webcam")
    walk.click("#oh-photo button[aria-label='capture photo']")
    walk.wait(".oh-bars")
    assert not [file for file in (tmp_path / "temporary").rglob("*") if file.is_file()]
