"""moe_kernel_timings: GPU operations by name, in layers and outside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from nvtxmoe_analysis.outputs.spec import FLOAT, INTEGER, TEXT, Column, Table

if TYPE_CHECKING:
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

TABLE = Table(
    name="kernel_timings",
    stem="moe_kernel_timings",
    order=110,
    meaning="GPU operations by name",
    recipe="moe_layer_corr",
    gpu=True,
    columns=(
        Column("rank", INTEGER, "global rank"),
        Column("layer_idx", INTEGER, "MoE layer; null: outside layers"),
        Column("phase", TEXT, "phase of the layer, or class of work outside layers"),
        Column("kernel_name", TEXT, "demangled; copies and memsets as `nsys stats` names them"),
        Column("launched_by", TEXT, "eager or graph"),
        Column("count", INTEGER, "operations"),
        Column("total_ns", INTEGER, "sum of durations"),
        Column("mean_ns", FLOAT, "mean duration"),
        Column("min_ns", INTEGER, "shortest duration"),
        Column("max_ns", INTEGER, "longest duration"),
    ),
    whole=("phase", "launched_by", "count", "total_ns", "mean_ns", "min_ns", "max_ns"),
    key=("rank", "layer_idx", "phase", "kernel_name", "launched_by"),
    note=(
        "operations in layers, and with an empty layer those outside: "
        "[phases](../explanation/attribution.md#work-outside-the-layers) "
        "step_attention to step_other, step_unplaced, between_steps, idle"
    ),
)


def build(results: RunMetrics) -> pl.DataFrame:
    """One row per rank, layer, phase, name and way of launch: the longest first within a layer, then outside layers.

    In a layer ``phase`` is route, dispatch, experts, combine, shared, collective, or other (in the layer but in no
    phase). Outside it is one of ``step_sums.SLOTS``: step_attention, step_collective, step_sampling, step_dense,
    step_norm, step_memory, step_recording, step_other (work of steps, by ``kernel_classes``), step_unplaced,
    between_steps or idle. Those rows are absent where the selection names layers.
    """
    return results.kernels
