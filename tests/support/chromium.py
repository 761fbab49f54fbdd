"""A real Chromium without a window, for tests of pages: what it logs, what it asks the network for, what it draws."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
#: How long a page may take to draw its charts, on a machine that is busy with other things.
PATIENCE_S = 600


class Browser:
    """One window. ``open`` forgets what was logged before."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def scheme(self, name: str) -> None:
        """The colour scheme that the system asks for: light or dark."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, page: Path) -> float:
        """Open a page and wait until its charts are drawn; how many seconds that took."""
        self.driver.get("about:blank")
        self.logged(), self.requests()
        begun = time.perf_counter()
        self.driver.get(page.as_uri())
        self.wait_drawn()
        return time.perf_counter() - begun

    def wait_drawn(self) -> None:
        """Wait until every chart was tried."""
        until = time.perf_counter() + PATIENCE_S
        while self.run("return document.documentElement.dataset.charts") != "drawn":
            assert time.perf_counter() < until, "the charts were not drawn in time"
            time.sleep(0.02)

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self.driver.execute_script(script, *arguments)

    def logged(self) -> list[str]:
        """What the console was told, of any level."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def requests(self) -> list[str]:
        """Addresses that were asked for, but for the scheme ``data:``."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]  # type: ignore[no-untyped-call]
        asked = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith("data:")]

    def states(self) -> dict[str, str]:
        """State by chart: drawn, failed, missing."""
        script = "return [...document.querySelectorAll('figure.chart')].map(f => [f.id.slice(6), f.dataset.state])"
        return dict(self.run(script))

    def marks(self) -> dict[str, int]:
        """How much each chart shows: marks of an SVG, distinct colours of a canvas."""
        return dict(self.run(MARKS))

    def screenshot(self, path: Path, width: int, height: int, *, y: int = 0, scale: float = 1.0) -> None:
        """A part of the page as PNG."""
        clip = {"x": 0, "y": y, "width": width, "height": height, "scale": scale}
        taken = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        path.write_bytes(base64.b64decode(taken["data"]))


MARKS = """
return [...document.querySelectorAll('figure.chart[data-state=drawn]')].map(figure => {
  const canvas = figure.querySelector('canvas');
  if (!canvas) {
    const shapes = '.mark-rect path, .mark-symbol path, .mark-line path, .mark-text text';
    return [figure.id.slice(6), figure.querySelectorAll(shapes.split(', ').map(s => 'svg ' + s).join(', ')).length];
  }
  const pixels = new Uint32Array(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer);
  return [figure.id.slice(6), new Set(pixels).size];
})
"""


@contextmanager
def opened(downloads: Path | None = None, *, width: int = 1280, height: int = 900) -> Iterator[Browser]:
    """A browser: NVTXMOE_TEST_CHROMIUM and NVTXMOE_TEST_CHROMEDRIVER, else those of the distribution. Never skipped."""
    binary = Path(os.environ.get("NVTXMOE_TEST_CHROMIUM") or "/usr/bin/chromium")
    driver = Path(os.environ.get("NVTXMOE_TEST_CHROMEDRIVER") or "/usr/bin/chromedriver")
    for path in (binary, driver):
        if not os.access(path, os.X_OK):
            pytest.fail(f"no {path}: scripts/test.sh installs it (scripts/install_chromium.sh)")
    options = webdriver.ChromeOptions()
    options.binary_location = str(binary)
    for argument in (*ARGUMENTS, f"--window-size={width},{height}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    if downloads is not None:
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    made = webdriver.Chrome(options=options, service=Service(str(driver)))
    try:
        yield Browser(made)
    finally:
        made.quit()
