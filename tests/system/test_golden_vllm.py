"""A capture by nvtxmoe itself: real vLLM 0.26.0 on an H100, CUDA graphs, binary payloads, ended as vLLM ends."""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from nvtxmoe_analysis.analyze import Analysis, analyze
from scripts.bench.brute_force import attribute, cell_rows
from scripts.gpu.check_tails import check

LAYERS, STEPS = 4, 21


@pytest.fixture(scope="module")
def analysed(golden_vllm: Path, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """The whole of analyze."""
    return analyze([golden_vllm], tmp_path_factory.mktemp("vllm"))


def test_it_is_complete_and_everything_is_placed(analysed: Analysis) -> None:
    assert analysed.complete
    assert [check.name for check in analysed.checks if check.status in {"fail", "warn"}] == []
    coverage = analysed.validation["coverage"]
    assert coverage["placed_pct_of_step_time"] == 100.0
    assert coverage["classes"]["unplaced"]["operations"] == 0


def test_cells_equal_brute_force(analysed: Analysis, golden_vllm: Path) -> None:
    answer = attribute(golden_vllm)
    wanted = {
        (row["rank"], row["step"], row["layer_idx"]): (row["kernel_count"], row["kernel_time_ns"], row["busy_ns"])
        for row in cell_rows(answer.cells, answer.operations)
    }
    columns = ("rank", "step", "layer", "kernel_count", "kernel_time_ns", "busy_ns")
    rows = analysed.results.layers.select(columns).rows()
    assert {tuple(row[:3]): tuple(row[3:]) for row in rows} == wanted
    assert len(rows) == LAYERS * STEPS


def test_recording_adds_one_kernel_a_step_and_nothing_to_a_layer(analysed: Analysis) -> None:
    """Decode steps are replays: their layers hold vLLM's own kernels and copies only."""
    everywhere = analysed.results.kernels
    kernels = everywhere.drop_nulls("layer_idx")
    assert not kernels["kernel_name"].str.contains("nvtxmoe").any()
    outside = {
        row["name"]: row["operations"] for row in analysed.validation["coverage"]["in_step_outside_layers_names"]
    }
    assert outside["nvtxmoe_count"] == STEPS
    assert everywhere.filter(phase="step_recording").select("kernel_name", "count").rows() == [("nvtxmoe_count", STEPS)]
    replays = analysed.results.layers.filter(pl.col("launched_by") == "graph")
    assert len(replays) == 60
    # The prototype copied ids and weights in each layer: 2 copies that are not vLLM's. Here there are vLLM's alone.
    copies = kernels.filter(pl.col("kernel_name").str.contains("memcpy"))
    assert set(copies["phase"]) <= {"experts"}


def test_the_steps_are_numbered_without_gaps(analysed: Analysis) -> None:
    steps = analysed.results.steps.sort("step")
    assert steps["step"].to_list() == list(range(STEPS))
    both = steps.select(pl.col("prefill_tokens") + pl.col("decode_tokens")).to_series()
    assert steps["num_tokens"].to_list() == both.to_list()
    cells = analysed.results.routing.counts.cells
    assert Counter(cells["layer"].to_list()) == dict.fromkeys(range(LAYERS), STEPS)


def test_moe_meta_says_how_it_was_recorded(analysed: Analysis) -> None:
    (meta,) = analysed.results.reports[0].metas.values()
    assert (meta.raw["vllm"], meta.raw["recording"], meta.raw["payload_encoding"]) == ("0.26.0", "references", "binary")
    assert meta.raw["held_bytes"] == 16_128
    assert "capture" not in meta.raw


def test_the_check_of_tails_agrees_and_sees_a_loss(golden_vllm: Path, tmp_path: Path) -> None:
    assert check(golden_vllm, STEPS)["complete"]
    lost = tmp_path / "lost.sqlite"
    shutil.copy(golden_vllm, lost)
    with sqlite3.connect(lost) as base:
        (last,) = base.execute("SELECT max(start) FROM CUPTI_ACTIVITY_KIND_KERNEL").fetchone()
        base.execute("DELETE FROM CUPTI_ACTIVITY_KIND_KERNEL WHERE start > ?", (last - 3_000_000,))
    found = check(lost, STEPS)
    assert not found["complete"]
    assert found["launches_without_work"] > 0
    assert not analyze([lost], tmp_path / "out").complete
