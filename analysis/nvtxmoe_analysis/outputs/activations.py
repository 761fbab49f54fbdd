"""moe_expert_activations: how often each expert was chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from nvtxmoe_analysis.outputs.spec import FLOAT, INTEGER, Column, Table

if TYPE_CHECKING:
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

TABLE = Table(
    name="activations",
    stem="moe_expert_activations",
    order=10,
    meaning="how often each expert was chosen",
    recipe="moe_expert_sum",
    columns=(
        Column("layer_idx", INTEGER, "vLLM's number of the MoE layer"),
        Column("expert_id", INTEGER, "logical expert, from 0"),
        Column("activation_count", INTEGER, "assignments of the expert"),
        Column("percentage", FLOAT, "share of the layer's assignments, 0 to 100"),
    ),
    whole=("layer_idx", "expert_id", "activation_count"),
    note="every expert has a row, also if its count is zero",
)


def build(results: RunMetrics) -> pl.DataFrame:
    """One row per expert of a layer. ``percentage`` is null where the layer has no activation at all."""
    parts = [
        pl.DataFrame(
            {
                "layer_idx": np.full(len(total), layer, dtype=np.int64),
                "expert_id": np.arange(len(total), dtype=np.int64),
                "activation_count": total,
            }
        )
        for layer, total in results.totals.items()
    ]
    empty = pl.DataFrame(schema=dict.fromkeys(("layer_idx", "expert_id", "activation_count"), pl.Int64))
    of_layer = pl.col("activation_count").sum().over("layer_idx")
    share = pl.col("activation_count") * 100.0 / of_layer
    return pl.concat([empty, *parts]).with_columns(percentage=pl.when(of_layer > 0).then(share))
