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
        Column("kernel_count", INTEGER, "kernels"),
        Column("kernel_time_ns", INTEGER, "sum of the durations of kernels"),
        Column("memcpy_count", INTEGER, "copies"),
        Column("memcpy_time_ns", INTEGER, "sum of their durations"),
        Column("memset_count", INTEGER, "memsets"),
        Column("memset_time_ns", INTEGER, "sum of their durations"),
        Column("busy_ns", INTEGER, "length of the union of the intervals of all operations"),
        Column("gpu_start_ns", INTEGER, "start of the first operation, in the report's own time"),
        Column("gpu_end_ns", INTEGER, "end of the last operation, in the report's own time"),
        Column("launched_by", TEXT, "eager, graph, mixed, none"),
    ),
    whole=(
        *("layer_idx", "kernel_count", "kernel_time_ns", "memcpy_count", "memcpy_time_ns", "memset_count"),
        *("memset_time_ns", "busy_ns", "launched_by"),
    ),
    key=("rank", "step", "layer_idx"),
    unnumbered=True,
    note="one row per (rank, step, layer) captured",
)


def build(results: RunMetrics) -> pl.DataFrame:
    """One row for every (rank, step, layer) captured, zeros and nulls where the GPU did nothing."""
    return results.layers.rename({"layer": "layer_idx"}).select(*TABLE.types)
