"""moe_load_imbalance: how unevenly each step loaded the experts of each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from nvtxmoe_analysis.core.grouping import in_order, runs
from nvtxmoe_analysis.outputs.spec import FLOAT, INTEGER, Column, Table

if TYPE_CHECKING:
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

TABLE = Table(
    name="load_imbalance",
    stem="moe_load_imbalance",
    order=40,
    meaning="how unevenly each step loaded each layer's experts",
    recipe="moe_expert_sum",
    columns=(
        Column("layer_idx", INTEGER, "vLLM's number of the MoE layer"),
        Column(
            "timestamp_sec",
            FLOAT,
            "since the first captured step began; of the same report if the reports' clocks cannot be aligned",
        ),
        Column("std_dev", FLOAT, "population standard deviation over the counts of all experts"),
        Column("max_min_ratio", FLOAT, "largest / smallest count; null if an expert got nothing"),
        Column("max_mean_ratio", FLOAT, "largest / mean count"),
        Column("step", INTEGER, "number of the step"),
        Column("num_tokens", INTEGER, "scheduled tokens of the rank in the step"),
        Column("rank", INTEGER, "lowest rank of the group"),
    ),
    whole=("layer_idx", "step", "num_tokens", "rank"),
)


def build(results: RunMetrics) -> pl.DataFrame:
    """One row per (step, layer) of each group of ranks that shares tokens.

    ``timestamp_sec`` is null where the step's range was not captured.
    """
    begin_times = results.steps.select("rank", "step", "timestamp_ns").unique(["rank", "step"], keep="first")
    # Divided by numpy: polars multiplies by a scalar's reciprocal, which rounds twice.
    begin_times = begin_times.with_columns(timestamp_sec=pl.Series(begin_times["timestamp_ns"].to_numpy() / 1e9))
    cells, features = results.routing.counts.cells, results.features
    first, layers = runs(cells["rank"].to_numpy(), cells["step"].to_numpy())  # a step's layers stand together
    steps = cells.select("rank", "step")[first].join(
        begin_times, on=["rank", "step"], how="left", maintain_order="left"
    )
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
