"""Captures by nvtxmoe itself: vLLM 0.33.0 on an H200, in fp8, and gpt-oss in MXFP4, whose kernel routes inside."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from nvtxmoe_analysis.analyze import Analysis, analyze
from scripts.bench.brute_force import attribute, cell_rows
from scripts.gpu.check_tails import check

LAYERS, STEPS, TOKENS = 4, 39, 1_694
KINDS = ("gpt-oss", "fp8")


@pytest.fixture(scope="module")
def analysed(golden_vllm_033: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Analysis]:
    """The whole of analyze, of each."""
    return {kind: analyze([golden_vllm_033[kind]], tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_complete_and_everything_is_placed(analysed: dict[str, Analysis], kind: str) -> None:
    found = analysed[kind]
    assert found.complete
    coverage = found.validation["coverage"]
    assert coverage["placed_pct_of_step_time"] == 100.0
    assert coverage["classes"]["unplaced"]["operations"] == 0
    assert found.results.steps["step"].sort().to_list() == list(range(STEPS))
    assert found.results.steps["num_tokens"].sum() == TOKENS


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_has_counts_and_kernel_time(analysed: dict[str, Analysis], kind: str) -> None:
    results = analysed[kind].results
    counts = pl.read_parquet(analysed[kind].folder / "moe_step_activations.parquet")
    sums = counts.group_by("layer_idx").agg(pl.col("counts").list.sum().sum(), pl.col("step").n_unique())
    assert sorted(sums.rows()) == [(layer, TOKENS * 4, STEPS) for layer in range(LAYERS)]
    cells = results.layers
    assert len(cells) == LAYERS * STEPS
    assert cells["kernel_time_ns"].min() > 0  # type: ignore[operator]


@pytest.mark.parametrize("kind", KINDS)
def test_cells_equal_brute_force(analysed: dict[str, Analysis], golden_vllm_033: dict[str, Path], kind: str) -> None:
    answer = attribute(golden_vllm_033[kind])
    wanted = {
        (row["rank"], row["step"], row["layer_idx"]): (row["kernel_count"], row["kernel_time_ns"], row["busy_ns"])
        for row in cell_rows(answer.cells, answer.operations)
    }
    columns = ("rank", "step", "layer", "kernel_count", "kernel_time_ns", "busy_ns")
    rows = analysed[kind].results.layers.select(columns).rows()
    assert {tuple(row[:3]): tuple(row[3:]) for row in rows} == wanted


def test_how_the_ids_were_taken(analysed: dict[str, Analysis]) -> None:
    """gpt-oss is recomputed, and says how many tokens rounding decides; each step has one counting kernel."""
    for kind, word, kernel in (("gpt-oss", "recomputed", "nvtxmoe_recompute"), ("fp8", "references", "nvtxmoe_count")):
        found = analysed[kind]
        (meta,) = found.results.reports[0].metas.values()
        assert (meta.raw["vllm"], meta.raw["recording"], meta.raw["payload_encoding"]) == ("0.33.0", word, "binary")
        assert "capture" not in meta.raw
        recording = found.results.kernels.filter(phase="step_recording").select("kernel_name", "count").rows()
        assert recording == [(kernel, STEPS)]
    (message,) = [one.message for one in analysed["gpt-oss"].checks if one.name == "ids_taken"]
    assert "188 (2.8 %) of 6,776 tokens" in message


@pytest.mark.parametrize("kind", KINDS)
def test_the_check_of_tails_agrees(golden_vllm_033: dict[str, Path], kind: str) -> None:
    assert check(golden_vllm_033[kind], STEPS)["complete"]
