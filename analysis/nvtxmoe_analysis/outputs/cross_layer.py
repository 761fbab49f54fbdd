"""moe_cross_layer: how much a token's expert in one layer says of its expert in another."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.metrics.run_metrics import RunMetrics


def build(results: RunMetrics) -> pl.DataFrame:
    """One row a pair of layers that have sampled tokens in common.

    Columns: ``layer_a`` < ``layer_b``, ``adjacent`` (no MoE layer of the model between them), ``tokens`` (sample
    size), ``tokens_sampled`` (that both layers have: more where not all were looked at), ``experts_a``, ``experts_b``
    (that got any), ``mutual_information_bits`` (of a random pick of the token's experts in either layer: ``plug_in``
    less ``chance``), ``plug_in_bits``, ``chance_bits`` (mean after ``shuffles`` of the tokens), ``shuffles``,
    ``entropy_b_bits`` (of the pick in ``layer_b``), ``explained_pct`` (mutual information of that entropy),
    ``reason`` (why those are null).
    """
    return results.cross_layer.pairs
