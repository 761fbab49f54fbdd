"""The page in a real Chromium: nothing logged, nothing asked of the network, everything drawn."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from nvtxmoe_analysis.analyze import analyze
from nvtxmoe_analysis.report import report
from nvtxmoe_analysis.report.result import Report
from tests.support.chromium import PATIENCE_S, Browser, opened
from tests.support.report_results import EVIL, Made, write

CHARTS = {
    "step_share", "layer_phases", "top_kernels", "time_and_feature", "stragglers", "expert_heatmap", "imbalance_time",
    "coselection", "routing_weights", "roofline", "waterfall",
}  # fmt: skip


@pytest.fixture
def fresh(browser: Browser) -> Browser:
    """The browser, as a reader finds it who has chosen nothing."""
    browser.scheme("light")
    return browser


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of a made run."""
    run = Made()
    return report(write(tmp_path_factory.mktemp("made"), run.tables(), run.documents()))


@pytest.fixture(scope="module")
def golden(golden_2gpu: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of the real capture of two GPUs."""
    folder = tmp_path_factory.mktemp("golden-browser")
    analyze([golden_2gpu], folder)
    return report(folder)


def background(browser: Browser) -> str:
    return str(browser.run("return getComputedStyle(document.body).backgroundColor"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["made", "golden"])
def test_the_page_draws_and_is_quiet(which: str, scheme: str, browser: Browser, request: pytest.FixtureRequest) -> None:
    found: Report = request.getfixturevalue(which)
    browser.scheme(scheme)
    browser.open(found.page)
    assert browser.logged() == []
    assert browser.requests() == [found.page.as_uri()]
    # the real capture has no sizes of experts, so it has no roofline
    drawn = CHARTS if which == "made" else CHARTS - {"roofline"}
    assert browser.states() == {chart: "drawn" if chart in drawn else "missing" for chart in CHARTS}
    marks = browser.marks()
    assert marks.keys() == drawn
    assert all(number >= 5 for number in marks.values()), marks
    assert background(browser) == {"light": "rgb(245, 246, 249)", "dark": "rgb(16, 20, 27)"}[scheme]
    assert browser.driver.title == "Mixture-of-experts report"


def test_marks_are_as_many_as_there_is_to_show(made: Report, fresh: Browser) -> None:
    fresh.open(made.page)
    marks = fresh.marks()
    legend_and_bars = marks["expert_heatmap"]
    assert legend_and_bars >= 96  # a cell a (layer, expert)
    assert marks["imbalance_time"] >= 6 * 40 + 40
    assert marks["routing_weights"] > 6 * 15


def test_the_findings_are_there_before_the_charts(made: Report, fresh: Browser) -> None:
    fresh.open(made.page)
    texts = fresh.run("return [...document.querySelectorAll('.finding .headline')].map(e => e.textContent)")
    assert texts == [str(finding.headline) for finding in made.findings]
    first = fresh.run("return document.querySelector('.finding').getBoundingClientRect().top + scrollY")
    assert first < 500  # in the first screen


def test_the_scheme_can_be_chosen(made: Report, fresh: Browser) -> None:
    fresh.open(made.page)
    light, button = background(fresh), "document.getElementById('theme')"
    colours = "return document.querySelector('#chart-layer_phases svg .role-axis text').getAttribute('fill')"
    before = fresh.run(colours)
    assert fresh.run(f"return {button}.textContent") == "Dark"
    fresh.run(f"{button}.click()")
    fresh.wait_drawn()
    assert background(fresh) != light
    assert fresh.run(colours) != before
    assert fresh.states() == dict.fromkeys(CHARTS, "drawn")
    assert fresh.run(f"return [{button}.textContent, {button}.ariaLabel]") == [
        "Light", "Switch to the light colour scheme",
    ]  # fmt: skip
    fresh.open(made.page)  # it is remembered
    assert background(fresh) != light
    fresh.run(f"{button}.click()")
    fresh.wait_drawn()
    assert background(fresh) == light
    fresh.run("localStorage.clear()")
    fresh.open(made.page)
    fresh.scheme("dark")  # the system changes while the page is open
    until = time.perf_counter() + PATIENCE_S
    while background(fresh) == light and time.perf_counter() < until:
        time.sleep(0.02)
    fresh.wait_drawn()
    assert background(fresh) != light
    assert fresh.logged() == []


def test_names_from_the_capture_do_nothing(made: Report, fresh: Browser) -> None:
    fresh.open(made.page)
    assert EVIL in fresh.run("return document.querySelector('#chart-top_kernels table').textContent")
    assert EVIL in fresh.run("return document.querySelector('header p').textContent")
    for selector, number in {"img": 0, "script:not([type])": 2, "iframe": 0, "object": 0}.items():
        assert fresh.run(f"return document.querySelectorAll({selector!r}).length") == number, selector
    fresh.run(
        "const bar = document.querySelectorAll('#chart-top_kernels svg .mark-rect path')[1];"
        "const at = bar.getBoundingClientRect();"
        "for (const type of ['pointermove', 'mousemove']) bar.dispatchEvent(new MouseEvent(type,"
        " {bubbles: true, clientX: at.x + 5, clientY: at.y + 2}))"
    )
    tip = fresh.run("return [...document.querySelectorAll('#vg-tooltip-element')].map(e => e.textContent).join()")
    assert "</script><script>" in tip
    assert fresh.run("return document.querySelectorAll('#vg-tooltip-element script, img').length") == 0
    assert fresh.driver.title == "Mixture-of-experts report"
    assert fresh.logged() == []


def test_what_is_not_the_pages_may_not_run(made: Report, fresh: Browser, tmp_path: Path) -> None:
    """The policy stops a script that got in all the same."""
    text = made.page.read_text().replace("</main>", "<script>document.title = 'in'</script></main>")
    (tmp_path / "page.html").write_text(text)
    fresh.open(tmp_path / "page.html")
    assert fresh.driver.title == "Mixture-of-experts report"
    assert any("Content Security Policy" in line for line in fresh.logged())


def test_another_layer_can_be_chosen(made: Report, fresh: Browser) -> None:
    fresh.open(made.page)
    words = (
        "return [...document.querySelectorAll('#chart-time_and_feature svg .mark-text text')].map(e => e.textContent)"
    )
    assert "3.00 us a unit (2.90 us to 3.10 us), R2 0.98" in fresh.run(words)
    fresh.run(
        "const s = document.querySelector('#chart-time_and_feature select');"
        "s.value = '1'; s.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    until = time.perf_counter() + PATIENCE_S
    while "2.00 us a unit (1.90 us to 2.10 us), R2 0.98" not in fresh.run(words):
        assert time.perf_counter() < until, fresh.run(words)
        time.sleep(0.02)
    assert fresh.logged() == []


@pytest.mark.parametrize(("form", "begins"), [("svg", b"<svg"), ("png", b"\x89PNG")])
def test_a_chart_can_be_saved(form: str, begins: bytes, made: Report, fresh: Browser, downloads: Path) -> None:
    fresh.open(made.page)
    fresh.run(f"document.querySelector('#chart-stragglers button[data-save={form}]').click()")
    file, until = downloads / f"stragglers.{form}", time.perf_counter() + PATIENCE_S
    while not file.exists():
        assert time.perf_counter() < until, list(downloads.iterdir())
        time.sleep(0.05)
    assert file.read_bytes().startswith(begins)
    assert fresh.logged() == []


def test_readers_who_do_not_see_the_charts(made: Report, fresh: Browser) -> None:
    fresh.open(made.page)
    headings = [
        int(tag[1]) for tag in fresh.run("return [...document.querySelectorAll('h1,h2,h3')].map(e => e.tagName)")
    ]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(headings))
    assert fresh.run("return document.documentElement.lang") == "en"
    for figure in fresh.run(
        "return [...document.querySelectorAll('figure.chart')].map(f => [f.id,"
        " document.getElementById(f.getAttribute('aria-labelledby')).textContent,"
        " f.querySelector('.drawing').getAttribute('aria-label'), f.querySelectorAll('table th').length,"
        " f.querySelectorAll('table tbody tr').length, f.querySelector('figcaption').textContent])"
    ):
        assert all(figure), figure
    unnamed = "return [...document.querySelectorAll('button')].filter(b => !(b.ariaLabel || b.textContent)).length"
    assert fresh.run(unnamed) == 0
    ids = fresh.run("return [...document.querySelectorAll('main [id], header [id]')].map(e => e.id).filter(i => i)")
    ours = [name for name in ids if name.startswith(("chart-", "title-", "section-", "findings", "trust"))]
    assert len(ours) == len(set(ours)) > 20
    targets = fresh.run(
        "return [...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.getAttribute('href').slice(1))"
    )
    assert len(targets) > 10 and set(targets) <= set(ids)


@pytest.mark.parametrize("which", ["made", "golden"])
@pytest.mark.parametrize("width", [1280, 420, 360])
def test_nothing_sticks_out(width: int, which: str, request: pytest.FixtureRequest) -> None:
    found: Report = request.getfixturevalue(which)
    with opened(width=width) as narrow:
        narrow.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        narrow.open(found.page)
        assert narrow.run("return innerWidth") == width
        assert narrow.run("return document.documentElement.scrollWidth") <= width
        wide = "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
        assert width < 1280 or narrow.run(wide) == 0


def test_what_has_the_focus_is_seen(made: Report, fresh: Browser) -> None:
    fresh.open(made.page)
    seen = []
    for _ in range(12):
        fresh.driver.switch_to.active_element.send_keys(Keys.TAB)
        seen.append(
            fresh.run(
                "const e = document.activeElement, style = getComputedStyle(e), box = e.getBoundingClientRect();"
                "return [e.className || e.id || e.textContent, style.outlineStyle, style.outlineWidth, box.left >= 0]"
            )
        )
    assert [name for name, *_ in seen[:3]] == ["skip", "theme", "Findings"]
    assert all(rest == ["solid", "2px", True] for _, *rest in seen), seen


def test_the_contents_lead_to_every_chart(made: Report, fresh: Browser) -> None:
    fresh.open(made.page)
    fresh.run("document.querySelector('nav summary').click()")
    links = fresh.run(
        "return [...document.querySelectorAll('nav details a')].map(a => [a.hash, a.textContent, a.offsetHeight > 0])"
    )
    titles = fresh.run(
        "return [...document.querySelectorAll('figure.chart')]"
        ".map(f => ['#' + f.id, f.querySelector('h3').textContent])"
    )
    assert links == [[*title, True] for title in titles]
    assert len(links) == len(CHARTS)


def test_a_page_without_charts(tmp_path: Path, fresh: Browser) -> None:
    run = Made()
    tables = {stem: table.clear() for stem, table in run.tables().items()}
    found = report(write(tmp_path, tables, run.documents()))
    fresh.open(found.page)
    assert fresh.states() == dict.fromkeys(CHARTS, "missing")
    assert fresh.logged() == []


def test_a_large_run_opens_in_time(tmp_path: Path, fresh: Browser) -> None:
    """60 layers of 256 experts over 200 steps, which no chart shows whole: text before charts. Bounds leave room for a
    very busy machine."""
    run = Made(layers=60, experts=256, steps=200, top_k=8)
    folder = write(tmp_path, run.tables(), run.documents(), parquet=True)
    begun = time.perf_counter()
    found = report(folder)
    assert time.perf_counter() - begun < 600
    assert found.page.stat().st_size < 5_000_000
    took = fresh.open(found.page)
    painted = fresh.run("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert painted < 60_000
    assert painted < 1_000 * took
    assert took < 300
    assert fresh.states() == dict.fromkeys(CHARTS, "drawn")
    marks = fresh.marks()
    assert marks["expert_heatmap"] > 100  # distinct colours of its canvas
    assert all(marks.values())
    assert fresh.logged() == []
