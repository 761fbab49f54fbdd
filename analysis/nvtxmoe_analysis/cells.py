"""GPU time of every (step, layer) of one process tree: sums, unions of intervals, kernels by name."""

from __future__ import annotations

import numpy as np
import polars as pl

from nvtxmoe_analysis.ranges import PHASE_NAMES

LAUNCHED_BY = ("none", "eager", "graph", "mixed")
TIMED_KINDS = ("kernel", "memcpy", "memset")

TIMING_COLUMNS = {
    **{f"{kind}_{what}": pl.Int64 for kind in TIMED_KINDS for what in ("count", "time_ns")},
    "busy_ns": pl.Int64,
    "gpu_start_ns": pl.Int64,
    "gpu_end_ns": pl.Int64,
    "launched_by": pl.String,
}


def cell_timings(in_layer: pl.DataFrame) -> pl.DataFrame:
    """GPU work by (step_row, layer): the columns of TIMING_COLUMNS.

    Parameters:
        in_layer: see ``Attribution.in_layer``.
    """
    kind = pl.col("kind")
    duration = pl.col("end") - pl.col("start")
    sums = [
        expression
        for code, name in enumerate(TIMED_KINDS)
        for expression in (
            (kind == code).sum().cast(pl.Int64).alias(f"{name}_count"),
            duration.filter(kind == code).sum().alias(f"{name}_time_ns"),
        )
    ]
    launched = pl.col("graph").any().cast(pl.Int8) * 2 + (~pl.col("graph")).any().cast(pl.Int8)
    grouped = in_layer.group_by("step_row", "layer").agg(
        *sums,
        pl.col("start").min().alias("gpu_start_ns"),
        pl.col("end").max().alias("gpu_end_ns"),
        launched.alias("launched"),
    )
    busy = busy_times(in_layer)
    return (
        grouped.join(busy, on=["step_row", "layer"], how="left")
        .with_columns(
            launched_by=pl.col("launched").replace_strict(dict(enumerate(LAUNCHED_BY)), return_dtype=pl.String)
        )
        .select("step_row", "layer", *TIMING_COLUMNS)
    )


def busy_times(in_layer: pl.DataFrame) -> pl.DataFrame:
    """Length of the union of the operations' intervals by (step_row, layer): ``busy_ns``."""
    ordered = in_layer.select("step_row", "layer", "start", "end").sort("step_row", "layer", "start")
    if ordered.is_empty():
        return pl.DataFrame(schema={"step_row": pl.Int32, "layer": pl.Int32, "busy_ns": pl.Int64})
    step, layer = ordered["step_row"].to_numpy(), ordered["layer"].to_numpy()
    start, end = ordered["start"].to_numpy(), ordered["end"].to_numpy()
    first = np.flatnonzero(np.concatenate([[True], (step[1:] != step[:-1]) | (layer[1:] != layer[:-1])]))
    size = np.diff(np.append(first, len(start)))
    # Cells are laid end to end on one axis, so that a running maximum of ends never reaches into the next cell.
    last_end = np.maximum.reduceat(end, first)
    shift = np.repeat(np.concatenate([[0], np.cumsum(last_end - start[first])[:-1]]) - start[first], size)
    begins, ends = start + shift, end + shift
    covered = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]])
    fresh = np.maximum(ends - np.maximum(begins, covered), 0)
    return pl.DataFrame({"step_row": step[first], "layer": layer[first], "busy_ns": np.add.reduceat(fresh, first)})


def kernel_timings(in_layer: pl.DataFrame, names: dict[int, str], ranks: pl.Series) -> pl.DataFrame:
    """In-layer operations by rank, layer, phase, name and way of launch.

    Parameters:
        names: texts of ``in_layer["name"]``.
        ranks: rank of each step row.

    Returns:
        ``rank``, ``layer_idx``, ``phase``, ``kernel_name``, ``launched_by``, ``count``, ``total_ns``, ``min_ns``,
        ``max_ns``; the caller merges reports and adds the mean.
    """
    duration = pl.col("end") - pl.col("start")
    by_rank = in_layer.with_columns(rank=ranks.gather(in_layer["step_row"]))
    grouped = by_rank.group_by("rank", "layer", "phase", "name", "graph").agg(
        pl.len().cast(pl.Int64).alias("count"),
        duration.sum().alias("total_ns"),
        duration.min().alias("min_ns"),
        duration.max().alias("max_ns"),
    )
    return grouped.select(
        "rank",
        pl.col("layer").cast(pl.Int64).alias("layer_idx"),
        pl.col("phase").replace_strict(dict(enumerate(PHASE_NAMES)), return_dtype=pl.String),
        pl.col("name").replace_strict(names, default="", return_dtype=pl.String).alias("kernel_name"),
        pl.when("graph").then(pl.lit("graph")).otherwise(pl.lit("eager")).alias("launched_by"),
        "count",
        "total_ns",
        "min_ns",
        "max_ns",
    )
