"""moe_routing_weights_hist: the routing weights of sampled tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.outputs.spec import FLOAT, INTEGER, Column, Table

if TYPE_CHECKING:
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

TABLE = Table(
    name="routing_weights",
    stem="moe_routing_weights_hist",
    order=30,
    meaning="experts and weights of sampled tokens",
    recipe="moe_expert_sum",
    columns=(
        Column("layer_idx", INTEGER, "vLLM's number of the MoE layer"),
        Column("token_idx", INTEGER, "index of the token within its step"),
        Column("expert_id", INTEGER, "logical expert, from 0"),
        Column("weight", FLOAT, "weight that the router gave the expert"),
        Column("step", INTEGER, "number of the step"),
        Column("rank", INTEGER, "global rank"),
    ),
    whole=("layer_idx", "token_idx", "expert_id", "step", "rank"),
    note="one row per sampled token and chosen expert",
)


def build(results: RunMetrics) -> pl.DataFrame:
    """One row per expert of a sampled token, in routing order, by rank, step, layer and token.

    Integers are Int32 where payloads are, in the file Int64.
    """
    topk = results.routing.topk
    runs = topk.runs
    rows = runs["tokens"].to_numpy() * runs["top_k"].to_numpy()
    types = {"layer": np.int32, "step": np.int64, "rank": np.int32}
    columns = {name: np.repeat(runs[name].to_numpy().astype(dtype), rows) for name, dtype in types.items()}
    experts: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    if (runs["top_k"] == topk.experts.shape[1]).all():
        experts, weights = topk.experts.reshape(-1), topk.weights.reshape(-1)
    else:
        real = topk.experts >= 0
        experts, weights = topk.experts[real], topk.weights[real]
    per_token = np.repeat(runs["top_k"].to_numpy(), runs["tokens"].to_numpy())
    return pl.DataFrame(
        {
            "layer_idx": columns["layer"],
            "token_idx": np.repeat(topk.token, per_token),
            "expert_id": experts,
            "weight": weights,
            "step": columns["step"],
            "rank": columns["rank"],
        }
    )
