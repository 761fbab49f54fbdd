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
        Column("layer_a", INTEGER, "first MoE layer"),
        Column("layer_b", INTEGER, "second MoE layer, above the first"),
        Column("adjacent", BOOLEAN, "true: no MoE layer between them"),
        Column("tokens", INTEGER, "sampled tokens looked at"),
        Column(
            "tokens_sampled",
            INTEGER,
            "sampled tokens that both layers have; more than tokens if not all were looked at",
        ),
        Column("experts_a", INTEGER, "experts of layer_a that got any token"),
        Column("experts_b", INTEGER, "experts of layer_b that got any token"),
        Column(
            "mutual_information_bits",
            FLOAT,
            "mutual information of a random pick of a token's experts in either layer: plug_in_bits - chance_bits",
        ),
        Column("plug_in_bits", FLOAT, "its plug-in estimate"),
        Column("chance_bits", FLOAT, "mean plug-in estimate after shuffles of the tokens"),
        Column("shuffles", INTEGER, "number of shuffles"),
        Column("entropy_b_bits", FLOAT, "entropy of the pick in layer_b"),
        Column("explained_pct", FLOAT, "mutual information in percent of entropy_b_bits"),
        Column("reason", TEXT, "why the values are null"),
    ),
    whole=("layer_a", "layer_b", "adjacent", "tokens", "tokens_sampled", "experts_a", "experts_b", "shuffles"),
    reasoned=("mutual_information_bits", "plug_in_bits", "chance_bits", "entropy_b_bits"),
    note="one row per pair of layers; see [definition](../explanation/capacity-and-paths.md#from-layer-to-layer)",
)


def build(results: RunMetrics) -> pl.DataFrame:
    """One row per pair of layers that have sampled tokens in common."""
    return results.cross_layer.pairs
