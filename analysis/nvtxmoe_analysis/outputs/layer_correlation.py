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
        Column("top_k", INTEGER, "experts per token"),
        Column("total_activations", INTEGER, "assignments of the cell"),
        Column("active_experts", INTEGER, "experts that got a token"),
        Column("max_count", INTEGER, "assignments of the hottest expert"),
        Column("mean_count", FLOAT, "mean assignments over all experts"),
        Column("std_dev", FLOAT, "population standard deviation over all experts"),
        Column("max_mean_ratio", FLOAT, "max_count / mean_count"),
        Column("block_m", INTEGER, "rows of an expert tile"),
        Column("expert_tiles", INTEGER, "sum over experts of ceil(count / block_m)"),
        Column("kernel_count", INTEGER, "kernels"),
        Column("kernel_time_ns", INTEGER, "sum of the durations of kernels"),
        Column("busy_ns", INTEGER, "length of the union of the intervals of all operations"),
        Column("launched_by", TEXT, "eager, graph, mixed, none"),
        Column("step_kind", TEXT, "prefill, decode, mixed, none; null if unknown"),
        Column("cv", FLOAT, "std_dev / mean_count"),
        Column("entropy_bits", FLOAT, "Shannon entropy of the experts' shares"),
        Column("gini", FLOAT, "Gini coefficient of the counts"),
        Column("block_m_source", TEXT, "moe.meta or default"),
        Column("local_experts", INTEGER, "experts that this rank holds"),
        Column("local_activations", INTEGER, "assignments to local experts"),
        Column("local_active_experts", INTEGER, "local experts that got a token"),
        Column("local_max_count", INTEGER, "assignments of the hottest local expert"),
        Column("local_expert_tiles", INTEGER, "expert_tiles of local experts"),
        Column("weight_bytes", INTEGER, "weights of the active local experts"),
        Column("route_ns", INTEGER, "kernels in the phase route"),
        Column("dispatch_ns", INTEGER, "kernels in the phase dispatch"),
        Column("experts_ns", INTEGER, "kernels in the phase experts"),
        Column("combine_ns", INTEGER, "kernels in the phase combine"),
        Column("shared_ns", INTEGER, "kernels in the phase shared"),
        Column("collective_ns", INTEGER, "kernels in the phase collective"),
        Column(
            "other_ns", INTEGER, "kernels in the layer but in no phase; with the six columns before it, kernel_time_ns"
        ),
        Column("collective_inferred_ns", INTEGER, "collectives tied to the layer by inference; not in kernel_time_ns"),
        Column("own_ns", INTEGER, "kernel_time_ns without collectives"),
        Column("step_gpu_ns", INTEGER, "kernels, copies and memsets of the whole step on this rank"),
        Column("step_attention_ns", INTEGER, "attention outside layers in the step"),
        Column("step_collective_ns", INTEGER, "collectives outside layers in the step"),
        Column("step_sampling_ns", INTEGER, "sampling in the step"),
        Column("step_dense_ns", INTEGER, "matrix products outside layers in the step"),
        Column("step_norm_ns", INTEGER, "norms in the step"),
        Column("step_memory_ns", INTEGER, "copies and memsets outside layers in the step"),
        Column("step_recording_ns", INTEGER, "nvtxmoe's own kernel in the step"),
        Column("step_other_ns", INTEGER, "other work outside layers in the step"),
        Column("step_unplaced_ns", INTEGER, "work of the step that cannot be placed in a layer or outside"),
        Column("between_steps_ns", INTEGER, "work after the step and before the process's next step"),
        Column("step_share_pct", FLOAT, "share of the layer in step_gpu_ns, in percent"),
    ),
    whole=(
        *("layer_idx", "kernel_count", "kernel_time_ns", "busy_ns", "launched_by", "route_ns", "dispatch_ns"),
        *("experts_ns", "combine_ns", "shared_ns", "collective_ns", "other_ns", "collective_inferred_ns"),
    ),
    key=("rank", "step", "layer_idx"),
    unnumbered=True,
    note="one row per (rank, step, layer) captured; see [details](files.md#moe_layer_correlation)",
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
