"""Pairs of experts chosen together, against what chance gives."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.report.results import Source


def with_lift(frame: pl.DataFrame, source: Source) -> pl.DataFrame:
    """Pairs with ``pct`` (of the tokens looked at) and ``lift``: the pair's share over the product of both experts'
    shares. A token with an expert has top_k - 1 pairs with it, which gives an expert's share; null without top_k."""
    top_k = {int(name.removeprefix("layer_")): layer["top_k"] for name, layer in source.document("summary").items()}
    both = pl.concat(
        [
            frame.select("layer_idx", pl.col(side).alias("expert"), "coselection_count")
            for side in ("expert_id_1", "expert_id_2")
        ]
    )
    k = pl.col("layer_idx").replace_strict(top_k, default=None, return_dtype=pl.Int64)
    had = both.group_by("layer_idx", "expert").agg(pl.col("coselection_count").sum().alias("pairs"))
    had = had.with_columns(had=pl.when(k > 1).then(pl.col("pairs") / (k - 1))).select("layer_idx", "expert", "had")
    joined = frame.join(
        had.rename({"expert": "expert_id_1", "had": "had_1"}),
        on=["layer_idx", "expert_id_1"],
        how="left",
        maintain_order="left",
    )
    joined = joined.join(
        had.rename({"expert": "expert_id_2", "had": "had_2"}),
        on=["layer_idx", "expert_id_2"],
        how="left",
        maintain_order="left",
    )
    return joined.with_columns(
        pct=100.0 * pl.col("coselection_count") / pl.col("tokens"),
        lift=pl.col("coselection_count") * pl.col("tokens") / (pl.col("had_1") * pl.col("had_2")),
    ).drop("had_1", "had_2")
