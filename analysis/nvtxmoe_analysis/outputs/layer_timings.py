"""moe_layer_timings: GPU time of every (rank, step, layer)."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.attribution.layer_sums import TIMING_COLUMNS
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics


def build(results: RunMetrics) -> pl.DataFrame:
    """One row for every (rank, step, layer) captured, zeros and nulls where the GPU did nothing.

    Columns: ``rank``, ``step``, ``layer_idx``, ``num_tokens``, ``prefill_tokens``, ``decode_tokens``,
    ``kernel_count``, ``kernel_time_ns`` (sum of durations), the same for memcpy and memset, ``busy_ns`` (union of
    intervals), ``gpu_start_ns`` and ``gpu_end_ns`` (in the report's own time), ``launched_by`` (eager, graph,
    mixed, none).
    """
    return results.layers.select(
        "rank",
        "step",
        pl.col("layer").alias("layer_idx"),
        "num_tokens",
        "prefill_tokens",
        "decode_tokens",
        *TIMING_COLUMNS,
    )
