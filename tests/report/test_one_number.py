"""The same thing has one number in the terminal, the findings, the charts and the document, and names its steps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nvtxmoe_analysis.analyze import Analysis, analyze
from nvtxmoe_analysis.outputs.read import load
from nvtxmoe_analysis.outputs.spec import FOLDER
from nvtxmoe_analysis.overview import overview
from nvtxmoe_analysis.report.advice import write_findings
from nvtxmoe_analysis.report.chart import Drawing
from nvtxmoe_analysis.report.charts import step_share, waterfall
from nvtxmoe_analysis.report.finding import Finding
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.number_text import duration
from nvtxmoe_analysis.report.results import Source
from tests.support.cli import run
from tests.support.placement_captures import unpacked
from tests.support.planted_faults import FAULTS


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """Decode and mixed steps of two ranks, after start-up."""
    folder = tmp_path_factory.mktemp("mixed")
    export = FAULTS["late launches in mixed steps"][1].write(folder / "run.sqlite")
    return analyze([export], folder / "out")


@pytest.fixture(scope="module")
def source(done: Analysis) -> Source:
    return Source(load(done.folder))


def finding_of(done: Analysis, id: str) -> Finding:
    return next(one for one in done.advice.findings if one.id == id)


def test_the_terminals_layer_takes_what_the_finding_says(done: Analysis) -> None:
    shown = overview(done)
    layer = max(shown["layers"], key=lambda one: one["own_ns_per_step"])
    headline = str(finding_of(done, "costliest-layer").headline)
    assert f"ayer {layer['layer']} " in headline and f" {duration(layer['own_ns_per_step'])} of own kernel" in headline
    assert shown["times_per_step_of"] == "mean of 16 steady decode steps on 2 ranks"


def test_the_chart_has_the_findings_share_of_moe_layers(done: Analysis, source: Source) -> None:
    drawing = step_share.build(source)
    assert isinstance(drawing, Drawing)
    shares = {(row["kind"], row["class"]): row["pct"] for row in drawing.data["shares"].iter_rows(named=True)}
    share = finding_of(done, "layers-time").headline.numbers[-1]
    assert shares["steady decode (16)", "moe layers"] == pytest.approx(share.value, abs=1e-3)
    assert shares["steady mixed (8)", "moe layers"] == pytest.approx(
        finding_of(done, "other-steps").headline.numbers[-1].value, abs=1e-3
    )
    assert ("left out (2)", "moe layers") in shares
    for kind in {kind for kind, _ in shares}:
        assert sum(pct for (other, _), pct in shares.items() if other == kind) == pytest.approx(100)


def test_the_waterfalls_bars_add_up_to_the_findings_total(done: Analysis, source: Source) -> None:
    drawing = waterfall.build(source)
    assert isinstance(drawing, Drawing)
    total = finding_of(done, "where-time-goes").headline.numbers[0]
    assert drawing.data["waterfall"].filter(step_kind="decode")["ms"].sum() == pytest.approx(total.value / 1e6)


def test_times_per_step_of_a_page_have_one_unit(done: Analysis) -> None:
    ids = ("layers-time", "where-time-goes", "launch-skew", "collective-wait", "slow-rank")
    texts = [str(sentence) for one in done.advice.findings if one.id in ids for sentence in one.sentences]
    assert len(texts) > 3
    assert set(re.findall(r"[\d,.]+ (s|ms|us)\b", " ".join(texts))) == {"us"}


@pytest.mark.parametrize(
    ("ns", "unit", "text"),
    [
        (299_482, "ms", "0.299 ms"), (6_360, "ms", "0.0064 ms"), (20_982_000, "ms", "21.0 ms"), (29, "ms", "29 ns"),
        (0, "ms", "0 ms"), (9_180, "us", "9.18 us"), (149_200, "us", "149.2 us"), (299_482, "", "299.5 us"),
    ],
)  # fmt: skip
def test_a_time_in_a_given_unit(ns: float, unit: str, text: str) -> None:
    assert duration(ns, unit) == text


def test_the_document_names_the_steps(done: Analysis) -> None:
    document = json.loads((done.folder.parent / "findings.json").read_text())
    assert [steps["step_kind"] for steps in document["other_steps"]] == ["mixed"]
    assert {one["at_stake"]["per"] for one in document["findings"] if one["at_stake"]} >= {"steady mixed step"}
    assert done.advice.step_sets["steady mixed"] == frozenset(range(2, 26, 3))


def test_start_up_is_in_no_other_kind(done: Analysis, source: Source) -> None:
    sets = [steps.numbers for steps in (done.advice.steady, *done.advice.others) if steps is not None]
    assert not frozenset.union(*sets) & {0, 1} and not frozenset.intersection(*sets)
    assert [other.steady for other in Ledger(source).others] == list(done.advice.others)


def test_the_advised_way_is_the_one_whose_saving_is_shown(tmp_path: Path) -> None:
    """Renumbering and EPLB are other placements, with other savings."""
    unpacked("skewed", tmp_path).rename(tmp_path / FOLDER)
    found = next(one for one in write_findings(tmp_path)[0].findings if one.id == "uneven-ranks")
    verdict = run("place", tmp_path, "--json").json["verdict"]
    assert found.next_step is not None and found.next_step.command == f"nvtxmoe place {tmp_path} -o placements"
    assert f" by {verdict['placement']}.vllm.json, which the command writes" in found.next_step.action
    (number,) = next(detail.numbers for detail in found.details if "--enable-eplb" in str(detail))
    assert number.value == verdict["phases"]["decode"]["eplb_net_saved_ns"]
    assert number.evidence["key"] == "verdict.phases.decode.eplb_net_saved_ns"
