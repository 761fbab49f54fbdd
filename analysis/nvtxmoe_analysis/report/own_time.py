"""Which column holds the own time of layers, and which layer has most of it."""

from __future__ import annotations

import polars as pl


def own_column(frame: pl.DataFrame) -> str:
    """The column of the layers' own time, without collectives; their kernel time where that is not known."""
    return "own_ns" if "own_ns" in frame.columns and frame["own_ns"].sum() else "kernel_time_ns"


def costliest_layer(frame: pl.DataFrame) -> int:
    """The layer with the most own time; of equal ones the lowest."""
    column = own_column(frame)
    by_layer = frame.group_by("layer_idx").agg(pl.col(column).sum())
    return int(by_layer.sort([column, "layer_idx"], descending=[True, False])["layer_idx"][0])
