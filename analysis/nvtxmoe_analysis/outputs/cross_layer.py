"""moe_cross_layer: how much a token's expert in one layer says of its expert in another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from nvtxmoe_analysis.outputs.spec import BOOLEAN, FLOAT, INTEGER, TEXT, Column, Table

if TYPE_CHECKING:
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

TABLE = Table(
    name="cross_layer",
    stem="moe_cross_layer",
    order=80,
    meaning="how expert choice in one layer predicts another's",
    recipe="moe_expert_sum",
    columns=(
        Column("layer_a", INTEGER),
        Column("layer_b", INTEGER, "above the first"),
        Column("adjacent", BOOLEAN, "no MoE layer between them"),
        Column("tokens", INTEGER, "sampled tokens looked at"),
        Column("tokens_sampled", INTEGER, "that both layers have: more where not all were looked at"),
        Column("experts_a", INTEGER),
        Column("experts_b", INTEGER, "that got any"),
        Column(
            "mutual_information_bits",
            FLOAT,
            "of a random pick of the token's experts in either layer: plug_in less chance",
        ),
        Column("plug_in_bits", FLOAT),
        Column("chance_bits", FLOAT, "mean after shuffles of the tokens"),
        Column("shuffles", INTEGER),
        Column("entropy_b_bits", FLOAT, "of the pick in layer_b"),
        Column("explained_pct", FLOAT, "mutual information of that entropy"),
        Column("reason", TEXT, "why they are null"),
    ),
    note="a pair of layers a row; [definition](../explanation/capacity-and-paths.md#from-layer-to-layer)",
)


def build(results: RunMetrics) -> pl.DataFrame:
    """One row per pair of layers that have sampled tokens in common."""
    return results.cross_layer.pairs
