"""Steps on threads that run a part of them: vLLM runs micro-batches on threads of their own, outside of CUDA graphs."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.readers import nsys_tables


def with_steps(ranges: pl.DataFrame, *, step: int, layer: int) -> pl.DataFrame:
    """Add the step open in a process to its threads that have layers and no step of their own.

    Parameters:
        ranges: with ``globalTid``, ``start``, ``end`` (ns, null where it is open), ``kind`` and ``row``.
        step, layer: the kinds of range.
    """
    steps = ranges.filter(pl.col("kind") == step)
    parts = ranges.filter(pl.col("kind") == layer).join(steps, on="globalTid", how="anti")
    if steps.is_empty() or parts.is_empty():
        return ranges
    process = (pl.col("globalTid") // (1 << nsys_tables.TID_BITS)).alias("process")
    inside = (
        parts.select(process, "start", thread="globalTid")
        .sort("start")
        .join_asof(
            steps.select(process, "start", "end", "row").sort("start"),
            on="start",
            by="process",
            coalesce=False,
            check_sortedness=False,
        )
        .filter(pl.col("row").is_not_null() & (pl.col("end").is_null() | (pl.col("start") < pl.col("end"))))
        .select("thread", "row")
        .unique(maintain_order=True)
    )
    copies = steps.join(inside, on="row", how="inner", maintain_order="left").with_columns(globalTid="thread")
    return pl.concat([ranges, copies.select(ranges.columns)])
