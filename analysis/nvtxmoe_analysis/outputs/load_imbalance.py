"""moe_load_imbalance: how unevenly each step loaded the experts of each layer."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.results import Results


def build(results: Results) -> pl.DataFrame:
    """One row a (step, layer) of each group of ranks that shares tokens.

    Columns: ``layer_idx``, ``timestamp_sec`` (since the first captured step began; null where the step's range was
    not captured), ``std_dev`` (population, over the counts of all experts), ``max_min_ratio`` (null where an
    expert got nothing), ``max_mean_ratio``, ``step``, ``num_tokens``, ``rank`` (the lowest of the group).
    """
    begun = results.steps.select("rank", "step", "timestamp_ns").unique(["rank", "step"], keep="first")
    # Divided by numpy: polars multiplies by a scalar's reciprocal, which rounds twice.
    begun = begun.with_columns(timestamp_sec=pl.Series(begun["timestamp_ns"].to_numpy() / 1e9))
    cells = results.routing.counts.cells.select("rank", "step", "layer", "num_tokens")
    return (
        pl.concat([cells, results.features.select("std_dev", "max_min_ratio", "max_mean_ratio")], how="horizontal")
        .join(begun, on=["rank", "step"], how="left", maintain_order="left")
        .select(
            pl.col("layer").alias("layer_idx"),
            "timestamp_sec",
            "std_dev",
            "max_min_ratio",
            "max_mean_ratio",
            "step",
            "num_tokens",
            "rank",
        )
        .sort("rank", "step", "layer_idx")
    )
