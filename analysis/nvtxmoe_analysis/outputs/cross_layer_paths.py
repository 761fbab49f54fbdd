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
    columns=(
        Column("layer_a", INTEGER),
        Column("expert_a", INTEGER),
        Column("layer_b", INTEGER),
        Column("expert_b", INTEGER),
        Column("adjacent", BOOLEAN),
        Column("tokens", INTEGER, "looked at"),
        Column("tokens_a", INTEGER),
        Column("tokens_b", INTEGER, "that chose either expert"),
        Column("tokens_both", INTEGER),
        Column("probability", FLOAT, "of the second expert given the first: tokens_both / tokens_a"),
        Column("probability_low", FLOAT),
        Column("probability_high", FLOAT, "95 %, Wilson"),
        Column("base_probability", FLOAT, "of the second expert anyhow: tokens_b / tokens"),
        Column("lift", FLOAT, "probability / base_probability"),
        Column(
            "p_value", FLOAT, "at most so likely where tokens choose independently, for any path of the pair of layers"
        ),
    ),
    note="the strongest paths of each pair of layers that chance would hardly make",
)


def build(results: RunMetrics) -> pl.DataFrame:
    """The strongest paths of each pair of layers, the strongest first.

    Strength is what a path adds to the mutual information: tokens_both x log2(lift). ``p_value``: see
    ``cross_layer.chernoff``.
    """
    return results.cross_layer.paths
