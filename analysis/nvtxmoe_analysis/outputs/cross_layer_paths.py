"""moe_cross_layer_paths: from which expert of a layer tokens go to which of another more often than by chance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from nvtxmoe_analysis.outputs.spec import BOOLEAN, FLOAT, INTEGER, Column, Table

if TYPE_CHECKING:
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

TABLE = Table(
    name="cross_layer_paths",
    stem="moe_cross_layer_paths",
    order=90,
    meaning="the strongest paths from expert to expert",
    recipe="moe_expert_sum",
    columns=(
        Column("layer_a", INTEGER, "first MoE layer"),
        Column("expert_a", INTEGER, "expert in it"),
        Column("layer_b", INTEGER, "second MoE layer"),
        Column("expert_b", INTEGER, "expert in it"),
        Column("adjacent", BOOLEAN, "true: no MoE layer between them"),
        Column("tokens", INTEGER, "sampled tokens looked at"),
        Column("tokens_a", INTEGER, "tokens that chose expert_a"),
        Column("tokens_b", INTEGER, "tokens that chose expert_b"),
        Column("tokens_both", INTEGER, "tokens that chose both"),
        Column("probability", FLOAT, "P(expert_b given expert_a): tokens_both / tokens_a"),
        Column("probability_low", FLOAT, "lower end of Wilson's 95 % interval"),
        Column("probability_high", FLOAT, "upper end of Wilson's 95 % interval"),
        Column("base_probability", FLOAT, "P(expert_b): tokens_b / tokens"),
        Column("lift", FLOAT, "probability / base_probability"),
        Column(
            "p_value",
            FLOAT,
            "upper bound of the chance of such a path, for any path of the pair of layers, if tokens "
            "choose independently",
        ),
    ),
    whole=(
        *("layer_a", "expert_a", "layer_b", "expert_b", "adjacent", "tokens", "tokens_a", "tokens_b", "tokens_both"),
        *("probability", "probability_low", "probability_high", "base_probability", "lift", "p_value"),
    ),
    note="the strongest paths of each pair of layers that chance would hardly produce",
)


def build(results: RunMetrics) -> pl.DataFrame:
    """The strongest paths of each pair of layers, the strongest first.

    Strength is what a path adds to the mutual information: tokens_both x log2(lift). ``p_value``: see
    ``cross_layer.chernoff``.
    """
    return results.cross_layer.paths
