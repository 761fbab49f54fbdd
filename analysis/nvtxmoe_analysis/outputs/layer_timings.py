"""moe_layer_timings: GPU time of every (rank, step, layer)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from nvtxmoe_analysis.outputs.spec import CELL_COLUMNS, INTEGER, TEXT, Column, Table

if TYPE_CHECKING:
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

TABLE = Table(
    name="layer_timings",
    stem="moe_layer_timings",
    order=100,
    meaning="GPU time of every (rank, step, layer)",
    recipe="moe_layer_corr",
    gpu=True,
    columns=(
        *CELL_COLUMNS,
        Column("kernel_count", INTEGER),
        Column("kernel_time_ns", INTEGER, "sum of durations"),
        Column("memcpy_count", INTEGER),
        Column("memcpy_time_ns", INTEGER),
        Column("memset_count", INTEGER),
        Column("memset_time_ns", INTEGER),
        Column("busy_ns", INTEGER, "union of intervals"),
        Column("gpu_start_ns", INTEGER),
        Column("gpu_end_ns", INTEGER, "the report's own time"),
        Column("launched_by", TEXT, "eager, graph, mixed, none"),
    ),
    note="one row for every (rank, step, layer) captured",
)


def build(results: RunMetrics) -> pl.DataFrame:
    """One row for every (rank, step, layer) captured, zeros and nulls where the GPU did nothing."""
    return results.layers.rename({"layer": "layer_idx"}).select(*TABLE.types)
