"""Parts of the report by themselves: figures, embedding, the box of trust, the registry of charts."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nvtxmoe_analysis.core.text import listed, short_name
from nvtxmoe_analysis.outputs.read import load
from nvtxmoe_analysis.outputs.spec import FOLDER
from nvtxmoe_analysis.report import charts, report
from nvtxmoe_analysis.report.chart import SECTIONS
from nvtxmoe_analysis.report.chart_tools import table, thinned
from nvtxmoe_analysis.report.charts import coselection, expert_heatmap, imbalance_time, time_and_feature
from nvtxmoe_analysis.report.embed import columns_of, json_in_html, policy, rows_of, script_in_html
from nvtxmoe_analysis.report.findings import limits
from nvtxmoe_analysis.report.frame import asset
from nvtxmoe_analysis.report.ledger import Ledger, conditions
from nvtxmoe_analysis.report.number_text import duration, durations, shown
from nvtxmoe_analysis.report.numbers import SourcedNumber, Where, difference, percent, ratio, total
from nvtxmoe_analysis.report.results import Source
from nvtxmoe_analysis.report.sentences import sentence, together
from nvtxmoe_analysis.report.theme import MOST_NAME
from nvtxmoe_analysis.report.trust import NOT_TOLD, overhead, trust
from tests.support.paths import ROOT
from tests.support.report_numbers import check_figure
from tests.support.report_results import Made, write
from tests.support.screenshots import SHOTS

# Figures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"), (99, "99 ns"), (100, "0.10 us"), (1_900, "1.90 us"), (38_125, "38.1 us"), (999_949, "999.9 us"),
        (3_735_700, "3.74 ms"), (15_647_194, "15.6 ms"), (563_600_000, "563.6 ms"), (2_345_000_000, "2.35 s"),
        (-1_900, "-1.90 us"),
    ],
)  # fmt: skip
def test_durations(ns: int, text: str) -> None:
    assert duration(ns) == text


def test_durations_that_a_sentence_compares() -> None:
    """One unit, and enough digits to tell the ends of an interval apart."""
    assert durations(95.0, 89.0, 110.0) == ["0.10 us", "0.09 us", "0.11 us"]
    assert durations(25.0, 24.8, 25.2) == ["25.0 ns", "24.8 ns", "25.2 ns"]
    assert durations(1650.2, 1650.1, 1650.3) == ["1.6502 us", "1.6501 us", "1.6503 us"]
    assert durations(700, 700, 700) == ["0.70 us"] * 3


@pytest.mark.parametrize(
    ("value", "column", "text"),
    [
        (1500, "total_ns", "1.50 us"), (1.5, "wait_us", "1.50 us"), (12.345, "a_pct", "12.3 %"), (0.1, "pct", "0.10 %"),
        (4.187, "max_mean_ratio", "4.19"), (1234567, "rows", "1,234,567"), (0.25, "probability", "0.25"),
        (math.nan, "total_ns", "not known"),
    ],
)  # fmt: skip
def test_a_column_tells_its_unit(value: float, column: str, text: str) -> None:
    assert shown(value, column) == text


def test_computed_figures_say_of_what() -> None:
    part, whole = (
        SourcedNumber(30, "30 ns", "a.csv", "a_ns"),
        SourcedNumber(120, "120 ns", "b.csv", "b_ns", "sum", rows=4),
    )
    assert (percent(part, whole).value, percent(part, whole).text) == (25.0, "25.0 %")
    assert percent(part, whole).origin == "30 ns as a share of 120 ns"
    assert (ratio(whole, part).text, ratio(whole, part).origin) == ("4.00", "120 ns over 30 ns")
    assert (difference(whole, part).text, difference(whole, part).origin) == ("90 ns", "120 ns minus 30 ns")
    assert (total(whole, part).value, total(whole, part).origin) == (150, "120 ns plus 30 ns")
    units = [number.unit for number in (percent(part, whole), ratio(whole, part), difference(total(whole, part), part))]
    assert units == ["%", "1", "ns"]
    assert math.isnan(ratio(part, SourcedNumber(0, "0")).value)
    assert ratio(part, SourcedNumber(0, "0")).as_dict()["value"] is None


def test_sentences_take_figures_sentences_and_text() -> None:
    figure = SourcedNumber(1, "one")
    said = sentence("{} and {}: {}.", figure, "two", together([sentence("a {}", figure), sentence("b"), sentence("c")]))
    assert str(said) == "one and two: a one, b and c."
    assert said.numbers == [figure, figure]
    with pytest.raises(ValueError, match="more values than places"):
        sentence("{}", "a", "b")
    assert str(sentence("{}", "{not a place}")) == "{not a place}"


def test_lists_are_cut() -> None:
    assert [listed(list("abc"[:n])) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
    assert listed(list("abcdef"), 3) == "a, b, c and 3 more"


def test_weights_that_a_kernel_does_not_give_are_not_called_sampled(tmp_path: Path) -> None:
    """Rows of a sink have experts and no weight."""
    folder = tmp_path / FOLDER
    folder.mkdir()
    counts = "layer_idx,expert_id,activation_count,percentage\n0,0,3,50\n0,1,3,50\n"
    (folder / "moe_expert_activations.csv").write_text(counts)
    head = "layer_idx,token_idx,expert_id,weight,step,rank\n"
    (folder / "moe_routing_weights_hist.csv").write_text(f"{head}0,0,0,0.5,0,0\n0,0,1,,0,0\n0,1,0,,0,0\n")
    (told,) = limits._sampled(Ledger(Source(load(tmp_path))))
    assert str(told) == "Routing weights of all tokens: 1 of 6 assignments were sampled (16.7 %)."
    assert told.numbers[0].origin == "moe_routing_weights_hist.csv: number of rows with weight (3 rows)"


def test_figures_are_taken_from_frames(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    rows = "layer_idx,expert_id,activation_count,percentage\n0,0,5,50\n0,1,5,50\n1,0,8,80\n1,1,2,20\n2,0,0,\n"
    (folder / "moe_expert_activations.csv").write_text(rows)
    ledger = Ledger(Source(load(tmp_path)))
    take = ledger.take
    assert take("activations", "activation_count", "sum").value == 20
    assert take("activations", "activation_count", where={"layer_idx": 1, "expert_id": 0}).value == 8
    assert take("activations", "activation_count", "mean", where={"layer_idx": 1}).value == 5
    assert take("activations", "layer_idx", "distinct").value == 3
    assert take("activations", "layer_idx", "rows", where={"percentage": None}).value == 1
    assert take("activations", "activation_count", "sum", once=["layer_idx"]).value == 13
    assert math.isnan(take("activations", "percentage", "max", where={"layer_idx": 9}).value)
    one = take("activations", "percentage", where={"layer_idx": 1, "expert_id": 1})
    assert one.origin == "moe_expert_activations.csv: percentage where layer_idx = 1, expert_id = 1"
    many = take("activations", "activation_count", "sum", where={"percentage": None}, once=["layer_idx"])
    assert many.origin == (
        "moe_expert_activations.csv: sum of activation_count where percentage empty (1 row, each (layer_idx) once)"
    )
    with pytest.raises(ValueError, match="too many values"):
        take("activations", "activation_count", where={"layer_idx": 1})
    won = ledger.wins("activations", "activation_count", {"expert_id": 0}, ["layer_idx"])
    assert (won.value, won.rows) == (1, 2)  # a tie in layer 0, one row in layer 2
    assert won.origin == (
        "moe_expert_activations.csv: of 2 (layer_idx) those with the largest activation_count where expert_id = 0"
    )


def test_the_same_rows_are_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large table is filtered once for all columns that are taken from the same rows."""
    folder = tmp_path / FOLDER
    folder.mkdir()
    rows = "layer_idx,expert_id,activation_count,percentage\n0,0,5,50\n0,1,5,50\n1,0,8,80\n1,1,2,20\n"
    (folder / "moe_expert_activations.csv").write_text(rows)
    looked_for: list[object] = []

    def counting(where: Where) -> list[pl.Expr]:
        looked_for.append(where)
        return conditions(where)

    monkeypatch.setattr("nvtxmoe_analysis.report.ledger.conditions", counting)
    ledger = Ledger(Source(load(tmp_path)))
    where = {"layer_idx": 1}
    taken = [ledger.take("activations", name, "sum", where=where) for name in ("activation_count", "percentage")]
    assert [number.value for number in taken] == [10, 100]
    assert ledger.take("activations", "activation_count", "sum").value == 20
    assert looked_for == [where, {}]


# Embedding -----------------------------------------------------------------------------------------------------------


def test_nothing_in_json_ends_the_script() -> None:
    value = {"name": "</script><!--&\u2028\u2029", "number": 1.5}
    text = json_in_html(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value


def test_nothing_in_a_script_ends_it() -> None:
    text = script_in_html('const a = "</script>", b = "</SCRIPT >", c = "<!--", d = 1 < 2;')
    assert text == 'const a = "\\x3C/script>", b = "\\x3C/SCRIPT >", c = "\\x3C!--", d = 1 < 2;'


def test_frames_by_columns() -> None:
    frame = pl.DataFrame({"a": [1.0, 2.5, None, math.inf], "t": ["x", "y", "x", None], "n": [1, 2, 3, 4]})
    assert columns_of(frame) == {
        "length": 4,
        "columns": {"a": [1, 2.5, None, None], "t": [0, 1, 0, None], "n": [1, 2, 3, 4]},
        "texts": {"t": ["x", "y"]},
    }
    assert rows_of(frame)[1:3] == [{"a": 2.5, "t": "y", "n": 2}, {"a": None, "t": "x", "n": 3}]


def test_only_the_pages_own_scripts_may_run(tmp_path: Path) -> None:
    made = Made()
    page = report(write(tmp_path, made.tables(), made.documents())).page.read_text()
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 2
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    said = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert said is not None
    rules = said[1].replace("&#39;", "'")
    assert rules == policy(scripts)
    assert rules.startswith("default-src 'none'; script-src ")
    assert all(f"'sha256-{one}'" in rules for one in hashes)
    head = page[: page.index("<style>")] + re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    assert set(re.findall(r'(?:src|href)="([^#"][^"]*)"', head)) == {"data:,"}
    assert "University of Washington Interactive Data Lab" in asset("licenses.txt")
    assert asset("licenses.txt").split()[0] in page


# Trust ---------------------------------------------------------------------------------------------------------------


def told(*overheads: Any) -> dict[str, Any]:
    return {"inputs": [{"processes": [{} if said is None else {"overhead": said} for said in overheads]}]}


def test_what_capturing_cost() -> None:
    measured = {"gpu_us_a_step": 28.2, "gpu_us_a_step_ci95": [24.2, 31.7], "gpu_pct": 0.13, "cpu_us_a_step": 382}
    assert overhead(told({**measured, "measured": "batch 32"}, {**measured, "measured": "batch 32"})) == [
        "Recording cost 28.2 us of GPU time a step (95 % CI 24.2 to 31.7), 0.13 % of the step's GPU time, 382 us of "
        "CPU time a step, measured elsewhere on the same set-up: batch 32."
    ]
    assert overhead(told({"gpu_pct": 0.5, "nodes": 3})) == ["Recording cost 0.5 % of the step's GPU time, nodes 3."]
    assert overhead(told("not measured for this set-up; see the docs")) == [
        "Not measured for this set-up; see the docs."
    ]
    assert overhead(told(None)) == overhead({}) == [NOT_TOLD]


def test_what_this_capture_tells_of_its_cost(tmp_path: Path) -> None:
    made = Made()
    box = trust(Source(load(write(tmp_path, made.tables(), made.documents()))))
    own, whole = box.overhead[-1].numbers[0], box.overhead[-1].numbers[1].parts[1]
    assert own.value == 80 * 400
    for figure in (own, whole):
        check_figure(figure, tmp_path / FOLDER)
    assert str(box.overhead[-1]).startswith(
        "In this capture nvtxmoe's own kernel took 32.0 us of GPU time in steps, 0.1"
    )
    assert (box.complete, box.verdict) == (True, "The capture is complete: 1 check passed.")
    assert box.in_short == "1 check passed, 1 note"
    assert box.notes == ["No moe.collective range."]
    assert box.coverage.rows[0] == ["in a step and in a MoE layer", "10", "1.00 us", ""]


# Shaping -------------------------------------------------------------------------------------------------------------


def test_thinning_keeps_every_kth_of_a_group() -> None:
    frame = pl.DataFrame({"g": ["a"] * 7 + ["b"] * 2, "v": range(9)})
    assert thinned(frame, ["g"], 3)["v"].to_list() == [0, 3, 6, 7, 8]
    assert thinned(frame, ["g"], 7).equals(frame)


def test_tables_say_what_they_leave_out() -> None:
    rows = [[n, None] for n in range(50)]
    cut = table(("a", "b"), rows, file_name="x.csv", which="by a")
    assert (len(cut.rows), cut.rows[1]) == (40, ["1", ""])
    assert cut.note == "The first 40 of 50 rows by a. All of it is in x.csv."
    assert table(("a",), [[1]], file_name="x.csv").note == "All of it is in x.csv."


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("void vllm::moe::topkGating<float, int>(float const*)", "vllm::moe::topkGating"),
        ("[CUDA memcpy Device-to-Device]", "[CUDA memcpy Device-to-Device]"),
        ("(anonymous namespace)::k<int>", "(anonymous namespace)::k<int>"),
        ("fused_moe_kernel", "fused_moe_kernel"),
        ("<>", "<>"),
        ("k" * 80, "k" * 63 + "…"),
    ],
)
def test_short_names(name: str, short: str) -> None:
    assert short_name(name, MOST_NAME) == short


# Registry ------------------------------------------------------------------------------------------------------------

NEW = """
import altair as alt
import polars as pl
from nvtxmoe_analysis.report.chart import TIME, Drawing, Table
TITLE, SECTION, ORDER = "A new chart", TIME, 15
def build(source):
    chart = alt.Chart(alt.NamedData(name="d")).mark_point().encode(x="a:Q")
    return Drawing(chart, {"d": pl.DataFrame({"a": [1]})}, "A caption.", "A point.", Table(("a",), [["1"]]))
"""


def test_a_new_chart_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one_more.py").write_text(NEW)
    monkeypatch.setattr(charts, "__path__", [*charts.__path__, str(tmp_path)])
    made = Made()
    found = report(write(tmp_path / "results", made.tables(), made.documents()))
    assert found.charts[:3] == ["step_share", "one_more", "waterfall"]
    page = found.page.read_text()
    assert "A new chart" in page and "A caption." in page


def test_charts_are_in_the_order_of_the_sections() -> None:
    modules = charts.chart_modules()
    assert len(modules) == 11
    places = [(SECTIONS.index(module.SECTION), module.ORDER) for module in modules.values()]
    assert places == sorted(places) and len(set(places)) == len(places)
    assert all(module.TITLE and module.__doc__ for module in modules.values())


# Documentation -------------------------------------------------------------------------------------------------------


def test_the_page_of_the_report_names_every_chart_and_what_bounds_it() -> None:
    text = (ROOT / "docs" / "explanation" / "report.md").read_text()
    modules = charts.chart_modules()
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(modules)
    for module in modules.values():
        assert f"| {module.TITLE} |" in text
    for bound in (
        expert_heatmap.MOST_CELLS, imbalance_time.MOST_COLUMNS, coselection.MOST_PAIRS, time_and_feature.MOST_POINTS,
    ):  # fmt: skip
        assert f"{bound:,}" in text


def test_pictures_of_the_documentation_are_small() -> None:
    pictures = list((ROOT / "docs" / "images").glob("report-*.png"))
    assert {picture.name for picture in pictures} == set(SHOTS)
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert all(picture.stat().st_size < 300_000 for picture in pictures)
