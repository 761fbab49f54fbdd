"""The scripts in examples/ run as they stand, and draw what the files say."""

from __future__ import annotations

import io
import json
import re
import runpy
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nvtxmoe_analysis.outputs.read import load
from tests.support.paths import ROOT
from tests.support.written_results import Written, written

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"
NAMES = ("coselection_network", "coverage", "heatmap", "timeline")


@pytest.fixture(scope="module")
def real(golden_2gpu: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return written(tmp_path_factory.mktemp("examples"), golden_2gpu, formats=("parquet",))


def call(name: str, *words: str) -> None:
    """Run a script as `python examples/NAME.py WORDS` does, in this process."""
    before = sys.argv
    sys.argv = [str(EXAMPLES / f"{name}.py"), *words]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        sys.argv = before


def draw(name: str, results: Path, output: Path, *more: str) -> str:
    """What a script wrote. A warning is an error, and nothing is printed."""
    printed = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(printed), redirect_stderr(printed):
        warnings.simplefilter("error")
        call(name, str(results), str(output), *more)
    assert printed.getvalue() == ""
    return output.read_text() if output.suffix != ".png" else ""


def data(name: str, results: Path, folder: Path, *more: str) -> list[list[dict[str, Any]]]:
    """The rows that a page draws, a list a data set, as they stand in its specification."""
    text = draw(name, results, folder / "page.html", *more)
    assert re.findall(r'<(?:script|link)[^>]+(?:src|href)="', text) == []  # nothing is fetched
    at = text.index("const spec = ") if "const spec = " in text else text.index('{"config"')
    specification, _ = json.JSONDecoder().raw_decode(text[text.index("{", at) :])
    return list(specification["datasets"].values())


def test_there_are_no_others() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.py")} == {*NAMES, "renumber_experts"}
    text = (ROOT / "docs" / "how-to" / "load-results.md").read_text()
    assert all(f"`examples/{name}.py`" in text for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_in_a_process_of_its_own(name: str, real: Written, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py"), str(real.folder), str(tmp_path / "a.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done.stderr
    assert (tmp_path / "a.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_gets_the_chart(name: str, real: Written) -> None:
    chart = runpy.run_path(str(EXAMPLES / f"{name}.py"))["draw"](str(real.folder))
    assert chart.to_dict()["$schema"].startswith("https://vega.github.io/schema/vega-lite/")


@pytest.mark.parametrize("name", NAMES)
def test_svg_and_png(name: str, real: Written, tmp_path: Path) -> None:
    assert draw(name, real.folder, tmp_path / "chart.svg").startswith("<svg")
    draw(name, real.folder.parent, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_coverage(real: Written, tmp_path: Path) -> None:
    (rows,) = data("coverage", real.folder, tmp_path)
    found = {(row["layer_idx"], row["experts that"]): row["percent"] for row in rows}
    for layer, said in load(real.folder).summary.items():
        number = int(layer.removeprefix("layer_"))
        assert found[number, "used at all"] == said["activation_coverage_pct"]
        counts = sorted(load(real.folder).activations.filter(layer_idx=number)["activation_count"], reverse=True)
        half = next(n for n in range(len(counts) + 1) if 2 * sum(counts[:n]) >= sum(counts))
        assert found[number, "hold half of the activations"] == 100.0 * half / len(counts)


def test_heatmap(real: Written, tmp_path: Path) -> None:
    (rows,) = data("heatmap", real.folder, tmp_path)
    assert len(rows) == 4 * 32
    assert [row["times_even"] for row in rows] == pytest.approx([row["percentage"] * 32 / 100 for row in rows])
    assert draw("heatmap", real.folder, tmp_path / "chart.svg").count('aria-roledescription="rect mark"') == 4 * 32


def test_timeline(real: Written, tmp_path: Path) -> None:
    (rows,) = data("timeline", real.folder, tmp_path)
    steps = load(real.folder).load_imbalance
    assert sum(row["steps"] for row in rows) == len(steps)
    assert sum(row["num_tokens"] for row in rows) == steps["num_tokens"].sum()
    first = {
        row["layer_idx"]: row["max_mean_ratio"] for row in rows if row["seconds"] == min(r["seconds"] for r in rows)
    }
    assert first == pytest.approx(dict(steps.filter(step=0).select("layer_idx", "max_mean_ratio").iter_rows()))


def test_network(real: Written, tmp_path: Path) -> None:
    """Every line is a pair of the table, above what popularity explains."""
    sets = data("coselection_network", real.folder, tmp_path, "2")
    nodes, lines = sorted(sets, key=lambda rows: "pair" in rows[0])
    assert len(nodes) == 32
    pairs = load(real.folder).coselection.filter(layer_idx=2)
    count = {f"{a} and {b}": n for a, b, n in pairs.select(pl.col("^expert.*$"), "coselection_count").iter_rows()}
    partners = {node["expert"]: node["partners"] for node in nodes}
    assert sum(partners.values()) == 2 * sum(count.values())
    assert 0 < len(lines) <= 120
    for line in lines:
        one, other = map(int, line["pair"].split(" and "))
        expected = partners[one] * partners[other] / sum(partners.values())
        assert line["count"] == count[line["pair"]]
        assert line["lift"] == pytest.approx(line["count"] / expected)
        assert line["lift"] > 1.0 and expected >= 5.0


def test_many_layers_and_experts(tmp_path: Path) -> None:
    """60 x 256 cells are more than altair takes by default."""
    cells = pl.DataFrame({"layer_idx": range(60)}).join(pl.DataFrame({"expert_id": range(256)}), how="cross")
    cells = cells.with_columns(activation_count=pl.lit(3), percentage=pl.lit(100.0 / 256))
    cells.write_parquet(tmp_path / "moe_expert_activations.parquet")
    (rows,) = data("heatmap", tmp_path, tmp_path)
    assert len(rows) == 60 * 256


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "python examples/"),
        (("nowhere", "out.svg"), "nowhere"),
        (("REAL", "out.svg", "99"), "no layer 99 among these results"),
        (("REAL", "out.svg", "first"), "a layer is a number, not 'first'"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(
    words: tuple[str, ...], said: str, real: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script exits with a message, which Python prints, and code 1."""
    monkeypatch.chdir(tmp_path)
    given = [str(real.folder) if word == "REAL" else word for word in words]
    for name in NAMES if len(words) < 3 else ("coselection_network",):
        with pytest.raises(SystemExit, match=re.escape(said)) as ended:
            call(name, *given)
        assert isinstance(ended.value.code, str)
    assert list(tmp_path.iterdir()) == []
