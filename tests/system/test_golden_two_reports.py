"""Real captures of two ranks in a report each, by an nsys of its own: what no report alone can tell."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from nvtxmoe_analysis.analyze import Analysis, analyze
from nvtxmoe_analysis.outputs.layer_correlation import build
from scripts.bench.brute_force import attribute, cell_rows
from tests.support.cli import everything_but_its_path, run

LAYERS = {"tp2": 3, "dp2": 4}
TOP_K = {"tp2": 2, "dp2": 4}


@pytest.fixture(scope="module", params=["tp2", "dp2"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def paths(kind: str, golden_two_reports: dict[str, list[Path]]) -> list[Path]:
    return golden_two_reports[kind]


@pytest.fixture(scope="module")
def analysed(kind: str, paths: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return analyze(paths, tmp_path_factory.mktemp(kind))


def figures(analysed: Analysis, name: str) -> tuple[str, dict[str, object]]:
    (check,) = (one for one in analysed.checks if one.name == name)
    return check.status, dict(check.evidence)


def test_together_they_are_complete_and_alone_they_are_not(
    analysed: Analysis, paths: list[Path], tmp_path: Path
) -> None:
    assert analysed.complete and not analysed.failed
    assert figures(analysed, "ranks_present") == ("pass", {"world_size": 2, "present": [0, 1], "missing": []})
    assert analysed.validation["coverage"]["placed_pct_of_step_time"] == 100.0
    for rank, path in enumerate(paths):
        alone = analyze([path], tmp_path / str(rank))
        assert figures(alone, "ranks_present")[1]["missing"] == [1 - rank]


def test_cells_equal_brute_force(analysed: Analysis, paths: list[Path]) -> None:
    columns = ("rank", "step", "layer_idx", "kernel_count", "kernel_time_ns", "busy_ns")
    wanted = []
    for path in paths:
        answer = attribute(path)
        wanted += [tuple(row[name] for name in columns) for row in cell_rows(answer.cells, answer.operations)]
    rows = analysed.results.layers.select("rank", "step", "layer", *columns[3:]).rows()
    assert sorted(rows) == sorted(wanted)


def test_tokens_count_once_over_the_reports(kind: str, analysed: Analysis) -> None:
    """Tensor-parallel ranks saw the same tokens, each in its own report; data-parallel ones their own."""
    steps = analysed.results.steps
    ranks = (0, 1) if kind == "dp2" else (0,)
    tokens = int(sum(steps.filter(rank=rank)["num_tokens"].sum() for rank in ranks))
    assert {layer: int(one.sum()) for layer, one in analysed.results.totals.items()} == dict.fromkeys(
        range(LAYERS[kind]), TOP_K[kind] * tokens
    )
    copies = figures(analysed, "tensor_parallel_copies")[1]
    assert copies == {"compared": 171 if kind == "tp2" else 0, "differing": 0}


def test_what_the_ranks_experts_got_adds_up_over_the_reports(kind: str, analysed: Analysis) -> None:
    cells = build(analysed.results).drop_nulls("local_activations")
    total = pl.col("total_activations")
    by_step = (
        cells.group_by("step", "layer_idx")
        .agg(pl.len(), pl.col("local_activations").sum(), total.sum() if kind == "dp2" else total.first())
        .filter(len=2)
    )
    assert len(by_step) > 20 * LAYERS[kind]
    assert by_step["local_activations"].to_list() == by_step["total_activations"].to_list()


def test_the_recorded_clocks_agree_by_causality(kind: str, analysed: Analysis) -> None:
    """Two nsys of one host: by their recorded clocks no rank ends a collective before the other began."""
    status, _ = figures(analysed, "clocks_agree")
    split = analysed.results.collective_split
    assert status == "pass"
    assert split.compared == split.across > 100 * LAYERS[kind] // 4
    assert split.contradictions == 0
    assert [one.recorded_violations for one in split.aligned] == [None, 0]


def test_processes_give_the_same_files(kind: str, paths: list[Path], tmp_path: Path) -> None:
    for jobs in (1, 2):
        ran = run("analyze", *paths, "-o", tmp_path / str(jobs), "-j", jobs, "--strict", "--format", "parquet")
        assert ran.code == 0, ran.err
    assert everything_but_its_path(tmp_path / "1") == everything_but_its_path(tmp_path / "2")
