"""moe_cross_layer_paths: from which expert of a layer tokens go to which of another more often than by chance."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.metrics.run_metrics import RunMetrics


def build(results: RunMetrics) -> pl.DataFrame:
    """The strongest paths of each pair of layers, the strongest first.

    Strength is what a path adds to the mutual information: tokens_both x log2(lift).

    Columns: ``layer_a``, ``expert_a``, ``layer_b``, ``expert_b``, ``adjacent``, ``tokens`` (sample size),
    ``tokens_a``, ``tokens_b`` (that chose either expert), ``tokens_both``, ``probability`` (of expert_b given
    expert_a: tokens_both / tokens_a), ``probability_low``, ``probability_high`` (95 %, Wilson), ``base_probability``
    (tokens_b / tokens), ``lift`` (probability / base_probability), ``p_value`` (at most so likely where tokens choose
    independently, for any path of the pair of layers: see ``cross_layer.chernoff``).
    """
    return results.cross_layer.paths
