"""moe_layer_correlation: what the counts say beside what the GPU took, one row a (rank, step, layer)."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.results import KEY, Results
from nvtxmoe_analysis.routing import cell_features
from nvtxmoe_analysis.tiles import count_tiles

FEATURES = (
    "total_activations",
    "active_experts",
    "max_count",
    "mean_count",
    "std_dev",
    "max_mean_ratio",
    "block_m",
    "expert_tiles",
)


def build(results: Results) -> pl.DataFrame:
    """The counts' features joined with kernel time.

    Columns: ``rank``, ``step``, ``layer_idx``, ``num_tokens``, ``prefill_tokens``, ``decode_tokens``, ``top_k``,
    ``total_activations``, ``active_experts`` (that got a token), ``max_count``, ``mean_count``, ``std_dev``
    (population), ``max_mean_ratio``, ``block_m`` (rows of an expert tile, from moe.meta; null when unknown),
    ``expert_tiles`` (sum over experts of ceil(count / block_m); null likewise), ``kernel_count``,
    ``kernel_time_ns``, ``busy_ns``, ``launched_by``. Features are null where a cell has no counts.
    """
    parts = [
        pl.concat(
            [
                report.counts.cells.select(*KEY, "top_k"),
                cell_features(report.counts).rename({"total": "total_activations"}),
                count_tiles(report.counts, report.metas),
            ],
            how="horizontal",
        )
        for report in results.reports
    ]
    features = pl.concat(parts).unique(list(KEY), keep="first")
    return (
        results.layers.join(features, on=KEY, how="left", nulls_equal=True)
        .select(
            "rank",
            "step",
            pl.col("layer").alias("layer_idx"),
            "num_tokens",
            "prefill_tokens",
            "decode_tokens",
            "top_k",
            *FEATURES,
            "kernel_count",
            "kernel_time_ns",
            "busy_ns",
            "launched_by",
        )
        .sort("rank", "step", "layer_idx")
    )
