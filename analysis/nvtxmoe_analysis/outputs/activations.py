"""moe_expert_activations: how often each expert was chosen."""

from __future__ import annotations

import numpy as np
import polars as pl

from nvtxmoe_analysis.metrics.run_metrics import RunMetrics


def build(results: RunMetrics) -> pl.DataFrame:
    """One row an expert of a layer, also at zero.

    Columns: ``layer_idx``, ``expert_id``, ``activation_count``, ``percentage`` (0 to 100, of the layer; null when
    the layer has no activation at all).
    """
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
