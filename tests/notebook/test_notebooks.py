"""Notebooks over results, executed by Jupyter's own kernel: what their cells show needs no network."""

from __future__ import annotations

import base64
import json
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from nvtxmoe_analysis.recipes import gather_report, write_reports
from tests.support.chromium import Browser, opened
from tests.support.notebooks import execute, html_of, loads, notebook_of, outputs
from tests.support.paths import ROOT
from tests.support.report_results import EVIL, Made, write

pytestmark = pytest.mark.slow

RECIPES = ("moe_expert_sum", "moe_layer_corr", "moe_straggler")
#: Colours of a cell's text are the only control characters that Jupyter draws.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results whose names are hostile."""
    run = Made(layers=4)
    return write(tmp_path_factory.mktemp("made"), run.tables(), run.documents())


@pytest.fixture(scope="module")
def executed(made: Path) -> Any:
    """The notebook of the docs, and what each cell shows."""
    cells = (
        "from nvtxmoe_analysis import load\nresults = load('.')\nresults",
        "results.chart('stragglers')",
        "chart = results.chart('stragglers')\nchart.svg[:4], list(chart.data), chart.caption.split(':')[0]",
        "results.report()",
        "results.chart('roofline_of_the_moon')",
        "results.layer_correlation.head(2)",
        "!{__import__('sys').executable} -m nvtxmoe report .",
    )
    return execute(notebook_of(*cells), made, errors=True)


def data(executed: Any, cell: int) -> dict[str, Any]:
    """The forms in which a cell's value is shown."""
    (shown,) = outputs(executed)[cell]
    assert shown["output_type"] == "execute_result", shown
    return dict(shown["data"])


def test_results_show_findings_and_the_names_of_charts_and_tables(executed: Any) -> None:
    html = data(executed, 0)["text/html"]
    assert "MoE layers take" in html and "<p>How sure: measured" in html
    assert "results.chart(&#x27;stragglers&#x27;)" in html
    assert "<code>layer_correlation</code>" in html
    assert "capture complete" in html


def test_names_from_the_capture_are_text(executed: Any) -> None:
    assert EVIL not in data(executed, 0)["text/html"]
    assert "<script" not in data(executed, 0)["text/html"]
    assert data(executed, 3)["text/html"].count("<iframe") == 1
    assert "<script" not in data(executed, 3)["text/html"]


def test_a_chart_is_a_picture(executed: Any) -> None:
    (shown,) = outputs(executed)[1]
    assert set(shown["data"]) == {"text/plain", "image/png"}
    png = base64.b64decode(shown["data"]["image/png"])
    width, height = struct.unpack(">II", png[16:24])
    size = shown["metadata"]["image/png"]
    assert (size["width"], size["height"]) == (width // 2, height // 2)
    assert 300 < size["width"] < 2_000
    assert size["alt"] == "Bars by layer. Layer 3 has the most excess, 16.0 us over 40 steps."


def test_a_chart_gives_svg_frames_and_caption(executed: Any) -> None:
    text = data(executed, 2)["text/plain"]
    assert text == "('<svg', ['ranks'], 'moe_straggler.csv')"


def test_an_unknown_chart_is_one_line_with_the_names(executed: Any) -> None:
    (shown,) = outputs(executed)[4]
    assert shown["output_type"] == "error"
    (line,) = shown["traceback"]
    assert line.startswith("NvtxmoeError: no chart 'roofline_of_the_moon'. Ask for one of step_share, ")
    assert "stragglers" in line and "\n" not in line


def test_a_command_in_a_cell_leaves_no_control_characters(executed: Any, made: Path) -> None:
    text = "".join(shown["text"] for shown in outputs(executed)[6])
    assert "report.html" in text
    assert CONTROL.findall(text.replace("\r\n", "\n")) == []
    assert (made / "report.html").exists()


def test_nothing_is_loaded_over_the_network(executed: Any) -> None:
    assert loads('<script src="https://example.org/x.js">') != []
    assert loads(html_of(executed)) == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened() as made:
        yield made


def test_a_browser_draws_the_notebook_without_a_request(executed: Any, browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "notebook.html"
    page.write_text(html_of(executed), encoding="utf-8")
    browser.driver.get("about:blank")
    browser.logged(), browser.requests()
    browser.driver.get(page.as_uri())
    frame = browser.driver.find_element("tag name", "iframe")
    browser.run("arguments[0].scrollIntoView()", frame)  # a frame out of sight is not drawn
    browser.driver.switch_to.frame(frame)
    browser.wait_drawn()
    states = browser.states()
    assert "failed" not in states.values()
    assert states["stragglers"] == "drawn"
    browser.driver.switch_to.default_content()
    pictures = browser.run("return [...document.images].map(i => [i.alt, i.naturalWidth])")
    assert len(pictures) == 1
    assert all(alt and width > 300 for alt, width in pictures), pictures
    assert browser.run("return document.title") == "notebook"
    assert {url for url in browser.requests() if url != "about:srcdoc"} == {page.as_uri()}


# Recipes -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def facts(golden_2gpu: Path) -> Any:
    """What recipes gather of two GPUs."""
    return gather_report(str(golden_2gpu), nsys=None, filters={})


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request: pytest.FixtureRequest, facts: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook of a recipe over what the recipe writes of two GPUs, executed."""
    folder = tmp_path_factory.mktemp(request.param)
    write_reports([facts], folder, recipe=request.param, filters={})
    shutil.copy(ROOT / "recipes" / request.param / "analysis.ipynb", folder)
    return execute(nbformat.read(folder / "analysis.ipynb", as_version=4), folder)  # type: ignore[no-untyped-call]


def test_a_recipes_notebook_draws_without_a_network(recipe: Any) -> None:
    shown = [output for cell in outputs(recipe) for output in cell]
    assert "complete" in shown[0]["data"]["text/plain"]
    forms = [form for output in shown for form in output.get("data", {})]
    assert sum(form.startswith("image/") for form in forms) >= 2
    assert not any(output["output_type"] == "error" for output in shown)
    assert not [form for form in forms if "vega" in form]
    assert "Not drawn" not in json.dumps(shown)
    assert loads(html_of(recipe)) == []
