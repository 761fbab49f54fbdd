"""moe_routing_weights_hist: the routing weights of sampled tokens."""

from __future__ import annotations

import numpy as np
import polars as pl

from nvtxmoe_analysis.results import Results


def build(results: Results) -> pl.DataFrame:
    """One row an expert of a sampled token, in routing order.

    Columns: ``layer_idx``, ``token_idx`` (within its step), ``expert_id``, ``weight``, ``step``, ``rank``.
    """
    topk = results.routing.topk
    width = topk.experts.shape[1]
    real = topk.experts >= 0
    repeated = np.repeat(np.arange(len(topk)), width)[real.reshape(-1)]
    tokens = topk.tokens[repeated]
    return pl.DataFrame(
        {
            "layer_idx": tokens["layer"],
            "token_idx": tokens["token"],
            "expert_id": topk.experts[real].astype(np.int64),
            "weight": topk.weights[real].astype(np.float64),
            "step": tokens["step"],
            "rank": tokens["rank"],
        }
    ).sort("rank", "step", "layer_idx", "token_idx", maintain_order=True)
