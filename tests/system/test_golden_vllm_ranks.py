"""Captures by nvtxmoe itself of two ranks on two H100s: tensor and expert parallel, with EPLB too, data and expert
parallel.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from nvtxmoe_analysis.analyze import Analysis, analyze
from nvtxmoe_analysis.outputs import layer_model
from nvtxmoe_analysis.outputs.layer_correlation import build
from scripts.bench.brute_force import attribute, cell_rows
from scripts.gpu.check_tails import check

KINDS = ("tp2", "eplb", "dp2")
STEPS = {"tp2": 92, "eplb": 94, "dp2": 57}
TOKENS = {"tp2": 2286, "eplb": 2286, "dp2": 2960}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which capture."""
    return str(request.param)


@pytest.fixture(scope="module")
def analysed(kind: str, golden_vllm_ranks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """The whole of analyze."""
    return analyze([golden_vllm_ranks[kind]], tmp_path_factory.mktemp(kind))


def test_they_are_complete_and_everything_is_placed(
    kind: str, analysed: Analysis, golden_vllm_ranks: dict[str, Path]
) -> None:
    assert analysed.complete
    assert analysed.validation["coverage"]["placed_pct_of_step_time"] == 100.0
    assert analysed.validation["coverage"]["classes"]["unplaced"]["operations"] == 0
    tails = check(golden_vllm_ranks[kind], STEPS[kind])
    assert tails["complete"]
    assert tails["counts"] == tails["counts_wanted"] == 4 * STEPS[kind]


def test_cells_equal_brute_force(kind: str, analysed: Analysis, golden_vllm_ranks: dict[str, Path]) -> None:
    answer = attribute(golden_vllm_ranks[kind])
    columns = ("rank", "step", "layer_idx", "kernel_count", "kernel_time_ns", "busy_ns")
    wanted = sorted(tuple(row[name] for name in columns) for row in cell_rows(answer.cells, answer.operations))
    rows = analysed.results.layers.select("rank", "step", "layer", *columns[3:]).rows()
    assert sorted(rows) == wanted
    assert len(rows) == 4 * STEPS[kind]


def test_every_assignment_is_counted_once(kind: str, analysed: Analysis) -> None:
    """Tensor-parallel ranks see the same tokens, data-parallel ones their own."""
    totals = analysed.results.totals
    assert {layer: int(total.sum()) for layer, total in totals.items()} == dict.fromkeys(range(4), 4 * TOKENS[kind])


def test_the_reduction_after_a_layer_is_the_layers(kind: str, analysed: Analysis) -> None:
    """With tensor parallelism capture puts ``moe.collective`` around it; with data parallelism the kernels of the
    exchange lie inside the layer's own call."""
    kernels = analysed.results.kernels
    collective = kernels.filter(phase="collective")
    if kind != "dp2":
        # One reduction a step, layer and rank; in eager steps a copy of its input comes first.
        collective = collective.filter(~pl.col("kernel_name").str.contains("memcpy"))
        assert collective.group_by("rank", "layer_idx").agg(pl.col("count").sum()).sort("rank", "layer_idx").rows() == [
            (rank, layer, STEPS[kind] // 2) for rank in (0, 1) for layer in range(4)
        ]
        assert collective["kernel_name"].str.contains("cross_device_reduce|nccl|multimem").all()
    else:
        assert collective.is_empty()
        inside = kernels.filter(phase="experts")["kernel_name"]
        assert inside.str.contains("ncclDevKernel").any()


def test_moe_meta_says_who_the_ranks_are(kind: str, analysed: Analysis) -> None:
    metas = sorted(analysed.results.reports[0].metas.values(), key=lambda meta: meta.rank)
    sizes = [(m.raw["tp_size"], m.raw["ep_size"], m.raw.get("dp_size", 1)) for m in metas]
    assert sizes == [(1, 2, 2) if kind == "dp2" else (2, 2, 1)] * 2
    held = 18 if kind == "eplb" else 16  # physical experts: 4 are redundant
    assert [m.raw["layers"][0]["local_experts"] for m in metas] == [list(range(held)), list(range(held, 2 * held))]


def test_what_the_ranks_experts_got_adds_up_to_all_assignments(kind: str, analysed: Analysis) -> None:
    """With EPLB by physical experts; of data-parallel ranks, each of which counts its own, where none is idle."""
    cells = build(analysed.results).drop_nulls("local_activations")
    assert len(cells) == 4 * STEPS[kind]
    total = pl.col("total_activations")
    both = (
        cells.group_by("step", "layer_idx")
        .agg(pl.len(), pl.col("local_activations").sum(), total.sum() if kind == "dp2" else total.first())
        .filter(len=2)
    )
    assert len(both) == 4 * (27 if kind == "dp2" else STEPS[kind] // 2)
    assert both["local_activations"].to_list() == both["total_activations"].to_list()
    assert cells["local_active_experts"].max() <= cells["local_experts"].min()  # type: ignore[operator]


def test_models_of_real_captures_say_nothing_senseless(kind: str, analysed: Analysis) -> None:
    """A fit that one stretch of steps fixes gives neither a claim nor an error of years."""
    table = layer_model.build(analysed.results)
    assert table.filter(status="explains", role="best").is_empty()
    assert (table["cv_error_ns"].drop_nulls() < 1e9).all()
