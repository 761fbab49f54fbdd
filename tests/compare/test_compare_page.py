"""`nvtxmoe compare --html`: one file with every figure, that needs nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from nvtxmoe_analysis.compare.compare import compare
from nvtxmoe_analysis.compare.many import as_comparisons, compare_many
from nvtxmoe_analysis.compare.page import page
from tests.support.chromium import opened
from tests.support.cli import refused, run
from tests.support.compare_runs import Load, make_results

LOAD = Load(steps=60, experts=8, layers=3)
ODD = "<b>after & 漢"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("results")
    loads = {"before": LOAD, ODD: replace(LOAD, slow={1: 1.3}), "routing": replace(LOAD, gpu=False)}
    return [make_results(folder / name, load, seed) for seed, (name, load) in enumerate(loads.items())]


def test_the_page_needs_no_network_and_draws_all_charts(folders: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "new" / "comparison.html"
    ran = run("compare", *folders[:2], "--html", file)
    assert (ran.code, ran.err) == (0, "")
    assert f"Written:\n  {file}\n" in ran.out
    text = file.read_text(encoding="utf-8")
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"<[^>]+ (src|href)=\"(?!data:|#)", markup)
    assert text.count("<script") == 3 and "default-src &#39;none&#39;" in text
    assert ODD not in text and "&lt;b&gt;after &amp; 漢" in text
    assert "kernel_time +" in text and "differs from before" in text


@pytest.mark.browser
def test_the_page_in_a_browser(folders: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "comparison.html"
    assert run("compare", *folders, "--html", file).code == 0
    with opened() as browser:
        browser.open(file)
        states = browser.run("return [...document.querySelectorAll('figure.chart')].map(f => f.dataset.state)")
        assert states and set(states) == {"drawn"}
        assert browser.logged() == []
        assert browser.requests() == [file.as_uri()]


def test_each_figure_is_in_the_page(folders: list[Path]) -> None:
    found = compare_many(folders[:2] + folders[2:])
    text = page(found)
    for name, one in found.results.items():
        assert name == ODD or name in text
        for row in one.metrics.iter_rows(named=True):
            if row["layer_idx"] is None and row["change_pct"] is not None:
                assert f"<td>{row['change_pct']:+.2f} %</td>" in text
        for note in one.notes:
            assert note.split("(")[0].replace("'", "&#39;")[:30] in text
    data = json.loads(text.split('id="page-data">')[1].split("</script>")[0])
    assert set(data["charts"]) == {"changes", "layers-kernel_time", "layers-own_time", "layers-imbalance"}


def test_two_results_of_one_folder_and_results_without_gpu_time(folders: list[Path]) -> None:
    assert "no difference from A was seen" in page(as_comparisons(compare(folders[0], folders[0])))
    text = page(as_comparisons(compare(folders[2], folders[2])))
    assert "Change of imbalance by layer" in text and "Change of kernel_time by layer" not in text


def test_a_page_that_cannot_be_written(folders: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(run("compare", *folders[:2], "--html", tmp_path / "file" / "c.html"), "cannot write the page")
    (tmp_path / "folder").mkdir()
    assert run("compare", *folders[:2], "--html", tmp_path / "folder").code == 2
