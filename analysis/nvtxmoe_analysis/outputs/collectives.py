"""moe_collectives: every collective kernel, how long it waited and how long it transferred."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.results import Results


def build(results: Results) -> pl.DataFrame:
    """One row a collective kernel in a step; empty where no rank works with another.

    Columns: ``step``, ``layer_idx`` (null: tied to none), ``ordinal`` (of the rank's kernels of this name in this
    layer's phase of the step, or outside layers in the step, the how manieth, from 0), ``kernel_name``, ``inferred``
    (the layer was not told by ranges), ``rank``, ``start_ns`` (the report's own time), ``duration_ns``, ``wait_ns``
    (until the last rank began), ``transfer_ns`` (the rest), ``last_rank`` (which one began last), ``phase``,
    ``group_kind`` (expert, data, tensor: what kind of group took part), ``group`` (its lowest rank), ``ranks`` (how
    many it has), ``reason`` (why it could not be split: then the columns from ``wait_ns`` on but ``phase`` are null).
    """
    split = results.collective_split.frame.filter("kept")
    return (
        split.filter(pl.lit(results.several_ranks))
        .select(
            "step",
            pl.col("layer").alias("layer_idx"),
            "ordinal",
            "kernel_name",
            "inferred",
            "rank",
            pl.col("start").alias("start_ns"),
            (pl.col("end") - pl.col("start")).alias("duration_ns"),
            "wait_ns",
            "transfer_ns",
            "last_rank",
            "phase",
            "group_kind",
            "group",
            "ranks",
            "reason",
        )
        .sort("step", "layer_idx", "kernel_name", "ordinal", "phase", "rank", nulls_last=True)
    )
