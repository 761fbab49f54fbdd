"""The page on paper and in pictures, in a real Chromium: every chart, light, nothing cut."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from nvtxmoe_analysis.report import report
from nvtxmoe_analysis.report.result import Report
from nvtxmoe_analysis.report.theme import CLASSES, CONFIG, HOW, PHASES
from tests.support import pdf
from tests.support.chromium import Browser
from tests.support.report_results import Made, write

#: Pixels between the margins of A4 and of US letter, as page.css sets them.
PAPERS = {"A4": 703, "letter": 725}
#: Notes how the page was while it was printed: the event comes after the pages were made, before the screen's charts.
NOTE = """
addEventListener("afterprint", () => {
  window.printed = [...document.querySelectorAll("figure.chart")].map((figure) => {
    const drawing = figure.querySelector("svg, canvas");
    const text = figure.querySelector("svg .role-axis text");
    return [figure.id.slice(6), figure.dataset.state, drawing.tagName, text && text.getAttribute("fill")];
  });
});
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of a made run."""
    run = Made()
    return report(write(tmp_path_factory.mktemp("made"), run.tables(), run.documents()))


def printed(browser: Browser, **options: Any) -> bytes:
    """The open page as PDF."""
    return base64.b64decode(browser.driver.execute_cdp_cmd("Page.printToPDF", options)["data"])


def loaded(browser: Browser, page: Path) -> None:
    """Open a page and wait for its load event alone, as a program that prints does."""
    browser.driver.get("about:blank")
    browser.logged()
    browser.driver.get(page.as_uri())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_chart_is_printed_in_light_colours(scheme: str, made: Report, browser: Browser) -> None:
    browser.scheme(scheme)
    loaded(browser, made.page)
    browser.run(NOTE)
    paper = printed(browser)
    ink = CONFIG["light"]["axis"]["labelColor"]
    charts = {name: (state, tag, colour) for name, state, tag, colour in browser.run("return window.printed")}
    assert charts.keys() == set(made.charts)
    for name, (state, tag, colour) in charts.items():
        assert state == "drawn", name
        assert tag == "canvas" or colour == ink, name
    fills = pdf.fills(paper)
    for palette, used in ((CLASSES, ("moe layers", "dense", "attention")), (HOW, HOW), (PHASES, ("route", "experts"))):
        assert all(fills[palette[name]] for name in used), fills
    dark = CONFIG["dark"]
    assert not {"#10141b", "#171d27", "#e6e9ef", dark["axis"]["labelColor"], dark["axis"]["gridColor"]} & fills.keys()
    assert 5 <= pdf.pages(paper) <= 14
    browser.wait_drawn()  # the screen's charts are drawn again
    assert browser.states() == dict.fromkeys(made.charts, "drawn")
    ground = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(245, 246, 249)", "dark": "rgb(16, 20, 27)"}[scheme]
    assert browser.logged() == []


def test_the_chosen_scheme_is_not_printed(made: Report, browser: Browser) -> None:
    browser.scheme("light")
    loaded(browser, made.page)
    browser.run("document.getElementById('theme').click()")
    browser.wait_drawn()
    assert browser.run("return document.documentElement.dataset.theme") == "dark"
    fills = pdf.fills(printed(browser, printBackground=True))
    browser.run("localStorage.clear()")
    assert not {"#10141b", "#171d27", CONFIG["dark"]["axis"]["labelColor"]} & fills.keys()


def test_the_chosen_layer_is_printed_and_stays(made: Report, browser: Browser) -> None:
    browser.scheme("light")
    loaded(browser, made.page)
    browser.run(
        "const s = document.querySelector('#chart-time_and_feature select');"
        "s.value = '1'; s.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    browser.run(
        "addEventListener('afterprint', () => {"
        "const texts = document.querySelectorAll('#chart-time_and_feature svg .mark-text text');"
        "window.words = [...texts].map(text => text.textContent)})"
    )
    printed(browser)
    assert "2.00 us a unit (1.90 us to 2.10 us), R2 0.98" in browser.run("return window.words")
    browser.wait_drawn()
    assert browser.run("return document.querySelector('#chart-time_and_feature select').value") == "1"


@pytest.mark.parametrize("width", PAPERS.values(), ids=PAPERS)
def test_nothing_is_wider_than_the_paper(width: int, made: Report, browser: Browser) -> None:
    """All folded parts open, so that every table is seen."""
    browser.scheme("light")
    loaded(browser, made.page)
    metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        browser.run("document.querySelectorAll('details').forEach(d => (d.open = true))")
        browser.run("window.dispatchEvent(new Event('beforeprint'))")
        boxes = browser.run(
            "return [...document.querySelectorAll('h1, h2, h3, p, li, svg, canvas, td, th, pre')]"
            ".filter(e => e.getClientRects().length && !e.closest('.vega-bind'))"
            ".map(e => [e.tagName + ' ' + e.textContent.slice(0, 40), e.getBoundingClientRect().right])"
        )
        assert len(boxes) > 300
        assert [name for name, right in boxes if right > width + 1] == []
        assert browser.run("return document.documentElement.scrollWidth") <= width
        title = browser.run("return document.querySelector('h1').getBoundingClientRect().height")
        assert title < 40  # one line
        hidden = "return [...document.querySelectorAll('button, .skip')].filter(e => e.offsetHeight).length"
        assert browser.run(hidden) == 0
        cut = (
            "return [...document.querySelectorAll('.table, .scroll')].filter(e => e.scrollHeight > e.clientHeight + 1)"
        )
        assert browser.run(f"{cut}.length") == 0
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_the_page_is_loaded_once_its_charts_are_drawn(made: Report, browser: Browser) -> None:
    """A program that takes a picture after the load event, without scrolling, gets all charts."""
    browser.scheme("light")
    loaded(browser, made.page)
    assert browser.run("return scrollY") == 0
    assert browser.states() == dict.fromkeys(made.charts, "drawn")
    assert browser.run("return document.querySelectorAll('iframe').length") == 0
    complete = browser.run("return performance.getEntriesByType('navigation')[0].loadEventStart")
    painted = browser.run("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert painted < complete  # the text does not wait for the charts
