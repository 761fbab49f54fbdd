"""What findings of real captures of several ranks say of collectives, of totals and of what to run next."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import polars as pl
import pytest

from nvtxmoe_analysis.analyze import Analysis, analyze
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.outputs.read import load
from nvtxmoe_analysis.report.commands import UNKNOWN, export_perfetto
from nvtxmoe_analysis.report.finding import UNSEEN, Finding
from nvtxmoe_analysis.report.results import Source
from nvtxmoe_analysis.report.sentences import Sentence
from tests.support.cli import run
from tests.support.report_numbers import check_figure


@pytest.fixture(scope="module")
def data_parallel(golden_vllm_ranks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """Two data-parallel engines: NCCL kernels run in phase experts, and some cannot be split."""
    return analyze([golden_vllm_ranks["dp2"]], tmp_path_factory.mktemp("dp2"))


def finding_of(done: Analysis, id: str) -> Finding:
    return next(one for one in done.advice.findings if one.id == id)


def detail_of(found: Finding, begins: str) -> Sentence:
    return next(one for one in found.details if str(one).startswith(begins))


def test_both_totals_of_moe_time_name_what_they_differ_by(data_parallel: Analysis) -> None:
    layers, bars = finding_of(data_parallel, "layers-time"), finding_of(data_parallel, "where-time-goes")
    whole, cost, *others = detail_of(bars, "These ").numbers
    assert cost.value == layers.headline.numbers[0].value
    assert whole.value == bars.headline.numbers[0].value
    assert len(others) == 3
    assert cost.value + sum(one.value for one in others) == pytest.approx(whole.value, abs=1e-6)
    assert [one.value for one in detail_of(layers, "The waterfall's total").numbers] == [
        one.value for one in (whole, cost, *others)
    ]
    for number in (whole, cost, *others):
        check_figure(number, data_parallel.folder)


def test_the_costliest_layer_says_where_collectives_count(data_parallel: Analysis) -> None:
    found = finding_of(data_parallel, "costliest-layer")
    whole, beyond_own, *_ = detail_of(found, "With collectives it takes ").numbers
    rows = pl.read_csv(data_parallel.folder / "moe_layer_correlation.csv")
    steady = data_parallel.advice.steady
    assert steady is not None
    layer = int(str(found.headline).split("layer ")[1].split(" ")[0])
    mine = rows.filter(pl.col("step").is_in(steady.numbers) & (pl.col("layer_idx") == layer))
    assert whole.value == pytest.approx(mine["kernel_time_ns"].sum() / steady.rank_steps)
    assert beyond_own.value == pytest.approx((mine["kernel_time_ns"] - mine["own_ns"]).sum() / steady.rank_steps)
    longest = str(detail_of(found, "Its longest operation other than collectives is "))
    assert "nccl" not in longest


def test_the_rank_that_begins_last_is_counted(data_parallel: Analysis) -> None:
    rows = pl.read_csv(data_parallel.folder / "moe_collectives.csv")
    steady = data_parallel.advice.steady
    assert steady is not None
    name = ["step", "layer_idx", "kernel_name", "ordinal", "phase", "group_kind", "group"]
    met = rows.filter(pl.col("step").is_in(steady.numbers)).drop_nulls("last_rank").unique(name)
    last = met.group_by("last_rank").len().sort("len", descending=True).row(0)
    expected = f"Rank {last[0]} begins last most often: in {last[1]:,} of {len(met):,} collectives "
    assert detail_of(finding_of(data_parallel, "collective-wait"), expected)


def test_without_sizes_there_is_no_stake_and_it_comes_last(data_parallel: Analysis) -> None:
    found = data_parallel.advice.findings
    assert [one.id for one in found[-2:]] == ["far-from-peak", "limits"]
    assert (found[-2].kind, found[-2].stake, found[-2].next_step) == (UNSEEN, None, None)
    assert "the limit is unknown (sizes of the experts are not in moe.meta" in str(found[-2].details[0])


def test_ranks_that_were_filtered_out_are_not_unknown(golden_2gpu: Path, tmp_path: Path) -> None:
    done = analyze([golden_2gpu], tmp_path, selection=Selection(ranks=frozenset({0})))
    rows = pl.read_csv(done.folder / "moe_waterfall.csv").filter(pl.col("bar") == "uneven_ranks")
    assert rows["reason"].unique().to_list() == [
        "other ranks were filtered out, so their loads are not here: counted as waiting"
    ]


@pytest.mark.parametrize("name", ["run.sqlite", "a capture's; name.sqlite"])
def test_the_next_step_can_be_pasted(
    name: str, golden_2gpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).symlink_to(golden_2gpu)
    assert run("analyze", name, "-o", "out").code == 0
    printed = next(line for line in run("report", "out").out.splitlines() if line.startswith("  $ "))
    words = shlex.split(printed.removeprefix("  $ "))
    assert words == ["nvtxmoe", "export", name, "--perfetto", "run.pftrace", "--all"]
    assert run(*words[1:]).code == 0
    assert Path("run.pftrace").is_file()


def test_captures_that_are_not_known_or_too_many_stay_a_placeholder(data_parallel: Analysis, tmp_path: Path) -> None:
    file = Path(shutil.copy(data_parallel.folder / "moe_capture_validation.json", tmp_path))
    document = json.loads(file.read_text())
    for paths in ([], ["a"] * 9, ["a\x1bb"]):
        file.write_text(json.dumps({**document, "inputs": [{**document["inputs"][0], "path": p} for p in paths]}))
        command = export_perfetto(Source(load(tmp_path)))
        assert command == f"nvtxmoe export {UNKNOWN} --perfetto run.pftrace --all"
