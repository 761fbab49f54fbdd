"""moe_layer_correlation: what the counts say beside what the GPU took, one row a (rank, step, layer)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from nvtxmoe_analysis.outputs.spec import CELL_COLUMNS, FLOAT, INTEGER, TEXT, Column, Table

if TYPE_CHECKING:
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

TABLE = Table(
    name="layer_correlation",
    stem="moe_layer_correlation",
    order=120,
    meaning="what the counts say beside what the GPU took, by (rank, step, layer)",
    recipe="moe_layer_corr",
    gpu=True,
    columns=(
        *CELL_COLUMNS,
        Column("top_k", INTEGER),
        Column("total_activations", INTEGER),
        Column("active_experts", INTEGER, "that got a token"),
        Column("max_count", INTEGER),
        Column("mean_count", FLOAT),
        Column("std_dev", FLOAT, "population"),
        Column("max_mean_ratio", FLOAT),
        Column("block_m", INTEGER, "rows of an expert tile"),
        Column("expert_tiles", INTEGER, "sum over experts of ceil(count / block_m)"),
        Column("kernel_count", INTEGER),
        Column("kernel_time_ns", INTEGER),
        Column("busy_ns", INTEGER, "union of intervals"),
        Column("launched_by", TEXT),
        Column("step_kind", TEXT, "prefill, decode, mixed, none; null where not known"),
        Column("cv", FLOAT, "std_dev / mean_count"),
        Column("entropy_bits", FLOAT),
        Column("gini", FLOAT),
        Column("block_m_source", TEXT, "moe.meta or default"),
        Column("local_experts", INTEGER, "that this rank holds; the next five are of them"),
        Column("local_activations", INTEGER),
        Column("local_active_experts", INTEGER),
        Column("local_max_count", INTEGER),
        Column("local_expert_tiles", INTEGER),
        Column("weight_bytes", INTEGER),
        Column("route_ns", INTEGER),
        Column("dispatch_ns", INTEGER),
        Column("experts_ns", INTEGER),
        Column("combine_ns", INTEGER),
        Column("shared_ns", INTEGER),
        Column("collective_ns", INTEGER),
        Column("other_ns", INTEGER, "in the layer but in no phase; with the six before it, kernel_time_ns"),
        Column("collective_inferred_ns", INTEGER, "of collectives tied to the layer by inference"),
        Column("own_ns", INTEGER, "kernel_time_ns less collectives"),
        Column("step_gpu_ns", INTEGER, "of the whole step on this rank"),
        Column("step_attention_ns", INTEGER),
        Column("step_collective_ns", INTEGER),
        Column("step_sampling_ns", INTEGER),
        Column("step_dense_ns", INTEGER),
        Column("step_norm_ns", INTEGER),
        Column("step_memory_ns", INTEGER, "copies, memsets"),
        Column("step_recording_ns", INTEGER, "nvtxmoe's own kernel"),
        Column("step_other_ns", INTEGER),
        Column("step_unplaced_ns", INTEGER, "can't be placed in a layer or outside"),
        Column("between_steps_ns", INTEGER, "after the step and before the process's next"),
        Column("step_share_pct", FLOAT, "of the layer in the whole step's"),
    ),
    note="[below](#moe_layer_correlation)",
)


def build(results: RunMetrics) -> pl.DataFrame:
    """The counts' features joined with GPU time. Times are integer nanoseconds, sums of durations unless they say else.

    Features are null where a cell has no counts; ``cv``, ``entropy_bits`` and ``gini`` without assignments too (see
    ``routing_features.unevenness``). The rank's own experts are null where they are not known (see ``local_load``), and
    ``own_ns`` where the GPU did nothing. The columns of the step are the same in each of its layers' rows, and null
    where the step has no range; what its parts leave of ``step_gpu_ns`` is in layers. ``block_m_source``: see
    ``expert_tiles``.
    """
    return results.correlation
