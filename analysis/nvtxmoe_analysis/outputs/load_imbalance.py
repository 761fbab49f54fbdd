"""moe_load_imbalance: how unevenly each step loaded the experts of each layer."""

from __future__ import annotations

import numpy as np
import polars as pl

from nvtxmoe_analysis.core.grouping import in_order, runs
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics


def build(results: RunMetrics) -> pl.DataFrame:
    """One row a (step, layer) of each group of ranks that shares tokens.

    Columns: ``layer_idx``, ``timestamp_sec`` (since the first captured step began; null where the step's range was
    not captured), ``std_dev`` (population, over the counts of all experts), ``max_min_ratio`` (null where an
    expert got nothing), ``max_mean_ratio``, ``step``, ``num_tokens``, ``rank`` (the lowest of the group).
    """
    begun = results.steps.select("rank", "step", "timestamp_ns").unique(["rank", "step"], keep="first")
    # Divided by numpy: polars multiplies by a scalar's reciprocal, which rounds twice.
    begun = begun.with_columns(timestamp_sec=pl.Series(begun["timestamp_ns"].to_numpy() / 1e9))
    cells, features = results.routing.counts.cells, results.features
    first, layers = runs(cells["rank"].to_numpy(), cells["step"].to_numpy())  # a step's layers stand together
    steps = cells.select("rank", "step")[first].join(begun, on=["rank", "step"], how="left", maintain_order="left")
    table = pl.DataFrame(
        [
            cells["layer"].alias("layer_idx"),
            steps["timestamp_sec"].gather(np.repeat(np.arange(len(first)), layers)),
            *(features[name] for name in ("std_dev", "max_min_ratio", "max_mean_ratio")),
            *(cells[name] for name in ("step", "num_tokens", "rank")),
        ]
    )
    by = ("rank", "step", "layer_idx")
    return table if in_order(*(table[name].to_numpy() for name in by)) else table.sort(by)
