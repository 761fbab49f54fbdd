"""Windows of a vLLM 0.33 server under nsys on an H200, recorded in three ways (scripts/gpu/windows_under_nsys.py)."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from nvtxmoe_analysis.analyze import Analysis, analyze
from scripts.gpu.windows_under_nsys import INSIDE, LAYERS, TOP_K, WAYS, tokens_of

STEPS = 55


@pytest.fixture(scope="module")
def analysed(golden_windows: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Analysis]:
    """The whole of analyze, of each way."""
    folder = tmp_path_factory.mktemp("windows")
    return {way: analyze([golden_windows[way]], folder / way) for way in WAYS}


@pytest.mark.parametrize("way", WAYS)
def test_its_counts_are_those_of_the_requests_in_the_window(analysed: dict[str, Analysis], way: str) -> None:
    """Of three requests in it; one came before, and one after it."""
    counts = pl.read_parquet(analysed[way].folder / "moe_step_activations.parquet")
    sums = counts.group_by("layer_idx").agg(pl.col("counts").list.sum().sum(), pl.col("step").n_unique())
    assert sorted(sums.rows()) == [(layer, tokens_of(INSIDE) * TOP_K, STEPS) for layer in range(LAYERS)]


@pytest.mark.parametrize(("way", "launched_by"), [("eager", "eager"), ("whole", "graph")])
def test_every_layer_of_every_step_has_its_time(analysed: dict[str, Analysis], way: str, launched_by: str) -> None:
    assert analysed[way].complete
    layers = analysed[way].results.layers
    assert len(layers) == LAYERS * STEPS
    assert layers["kernel_time_ns"].min() > 0  # type: ignore[operator]
    timings = pl.read_csv(analysed[way].folder / "moe_layer_timings.csv")
    assert set(timings["launched_by"]) == {launched_by}


def test_graphs_that_were_captured_before_nsys_recorded_have_no_time(analysed: dict[str, Analysis]) -> None:
    """nsys has the nodes of such graphs, from its launch on, but not the layers' ranges in which they were created."""
    found = analysed["attached"]
    assert not found.complete
    (reason,) = found.validation["reasons"]
    assert reason.startswith(f"{LAYERS * STEPS} of {LAYERS * STEPS} (rank, step, layer) with tokens have no GPU work")
    assert "its graph captured" in reason
    assert found.results.layers["kernel_time_ns"].sum() == 0
