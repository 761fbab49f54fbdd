"""The column of the layers' own time, and the layer with most of it."""

from __future__ import annotations

import polars as pl


def own_column(frame: pl.DataFrame) -> str:
    """Return the column of own time, without collectives; the column of kernel time if own time is unknown."""
    return "own_ns" if "own_ns" in frame.columns and frame["own_ns"].sum() else "kernel_time_ns"


def costliest_layer(frame: pl.DataFrame) -> int:
    """Return the layer with the most own time; the lowest of equal ones."""
    column = own_column(frame)
    by_layer = frame.group_by("layer_idx").agg(pl.col(column).sum())
    return int(by_layer.sort([column, "layer_idx"], descending=[True, False])["layer_idx"][0])
