"""The column of the layers' own time, and the layer with most of it."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.report.steady import OUTLYING, STEP

#: Columns of own time, without collectives, and of kernel time.
OWN_TIMES = ("own_ns", "kernel_time_ns")


def own_column(frame: pl.DataFrame) -> str:
    """Return the column of own time, without collectives; the column of kernel time if own time is unknown."""
    return "own_ns" if "own_ns" in frame.columns and frame["own_ns"].sum() else "kernel_time_ns"


def outlying(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of layers that took OUTLYING times longer than usual beside the other layers of their step.

    A layer's usual is its median over (rank, step) of own time over the mean of the step's other layers, so that a
    large batch, which slows all layers, is no outlier.
    """
    if not set(STEP) <= set(frame.columns):
        return frame.clear()
    own_ns = pl.col(own_column(frame))
    others = (own_ns.sum().over(STEP) - own_ns) / (pl.len().over(STEP) - 1)
    relative = frame.select("layer_idx", relative=pl.when(others > 0).then(own_ns / others))
    usual = pl.col("relative").median().over("layer_idx")
    return frame.filter(relative.select((pl.col("relative") > OUTLYING * usual).fill_null(False)).to_series())


def costliest_layer(frame: pl.DataFrame) -> int:
    """Return the layer with the most own time without outliers; the lowest of equal ones."""
    column = own_column(frame)
    frame = frame.select(name for name in ("layer_idx", *OWN_TIMES, *STEP) if name in frame.columns)
    outliers = outlying(frame).group_by("layer_idx").agg(pl.col(column).sum().alias("outlying"))
    by_layer = frame.group_by("layer_idx").agg(pl.col(column).sum()).join(outliers, on="layer_idx", how="left")
    steady = by_layer.with_columns(steady=pl.col(column) - pl.col("outlying").fill_null(0))
    return int(steady.sort(["steady", "layer_idx"], descending=[True, False])["layer_idx"][0])
