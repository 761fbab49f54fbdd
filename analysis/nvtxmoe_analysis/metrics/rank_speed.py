"""Tell apart why a rank is slow: a larger load by routing, or more time at the same load.

The time of a layer's kernels on a rank over the mean of its group follows the rank's load over the mean load, and the
rank's own speed: clocks, memory and neighbours differ between GPUs. Both are fitted over (step, layer) by least
squares with Huber's weights. Where all ranks have the same load, routing could save nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from nvtxmoe_analysis.core.arrays import Floats

LOADS = ("local_activations", "local_active_experts")
KEY = ("step", "layer_idx", "group")
#: Rows that speeds are fitted to: of more, some steps.
MOST_ROWS = 50_000
#: Rows per rank that a speed needs, and the largest standard error of a speed that says something.
LEAST_ROWS, LARGEST_ERROR = 20, 0.02
HUBER_K, TURNS = 1.345, 8


def by_routing(whole_cells: pl.DataFrame, layers: pl.DataFrame, groups: pl.DataFrame) -> dict[str, Any] | None:
    """Return the part of the excess that routing makes, and how fast ranks are at the same load.

    Parameters:
        whole_cells: (step, layer) of groups with an excess, see ``straggler.stragglers``.
        layers: ``rank``, ``step``, ``layer_idx``, ``own_ns`` and LOADS.
        groups: ``rank``, ``group``, ``size``.

    Returns:
        ``cells``, ``cells_of_even_load``, ``saves_us`` (of cells whose loads are known) and ``speed``: per rank
        ``time_at_mean_load`` (over the group's mean) with ``error``, or ``reason``. None if no load is known.
    """
    cells, speed = cells_by_routing(whole_cells, layers, groups)
    if cells.is_empty():
        return None
    saves = float(cells.filter(~pl.col("even"))["excess"].sum())
    return {
        "cells": len(cells),
        "cells_of_even_load": int(cells["even"].sum()),
        "saves_us": round(saves / 1e3, 3),
        "speed": speed,
    }


def cells_by_routing(
    whole_cells: pl.DataFrame, layers: pl.DataFrame, groups: pl.DataFrame
) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
    """Return the excess that is left of each (step, layer) without the ranks' own speed, and these speeds.

    Parameters:
        whole_cells, layers, groups: as of :func:`by_routing`.

    Returns:
        Cells in which every rank's load is known: KEY, ``even`` (all ranks have the same load), ``excess`` (ns),
        ``error`` (standard error of the excess by the speeds', ns; null where speeds are unknown). Speeds: ``speed`` of
        :func:`by_routing`.
    """
    rows = _rows(whole_cells, layers, groups)
    if rows.is_empty():
        return pl.DataFrame(schema={"step": pl.Int64, "layer_idx": pl.Int64, "group": pl.Int64}), []
    ranks = rows["rank"].unique().sort().to_list()
    factors: dict[int, float] = dict.fromkeys(ranks, 1.0)
    errors: dict[int, float | None] = dict.fromkeys(ranks, None)
    speed: list[dict[str, Any]] = []
    for (_,), group_rows in rows.group_by("group", maintain_order=True):
        speeds = _speeds(group_rows)
        reason = _idle(group_rows) or _unknown(speeds)
        for rank, (factor, error, _) in sorted(speeds.items()):
            estimate = {"time_at_mean_load": factor, "error": error} if reason is None else {"reason": reason}
            speed.append({"rank": rank, **estimate})
            if reason is None:
                factors[rank], errors[rank] = factor, error
    own_ns = pl.col("own_ns") / pl.col("rank").replace_strict(factors, return_dtype=pl.Float64)
    error_of_rank = pl.col("rank").replace_strict(errors, return_dtype=pl.Float64)
    cells = (
        rows.with_columns(own=own_ns, error=error_of_rank * pl.col("own_ns"))
        .group_by(KEY)
        .agg(
            even=pl.all_horizontal(pl.col(load).min() == pl.col(load).max() for load in LOADS),
            excess=pl.min_horizontal(
                pl.col("own").max() - pl.col("own").mean(), pl.col("own_ns").max() - pl.col("own_ns").mean()
            ),
            error=pl.when(pl.col("error").null_count() == 0).then(pl.col("error").max()),
        )
        .sort(KEY)
    )
    return cells, sorted(speed, key=lambda row: row["rank"])


def _rows(whole_cells: pl.DataFrame, layers: pl.DataFrame, groups: pl.DataFrame) -> pl.DataFrame:
    """Return the ranks' time and load of cells in which every rank's load is known."""
    if not set(LOADS) <= set(layers.columns):
        return pl.DataFrame(schema={"rank": pl.Int64})
    known = whole_cells.select(*KEY, "ranks_in_group")
    rows = (
        layers.select("rank", "step", "layer_idx", "own_ns", *LOADS)
        .join(groups.select("rank", "group"), on="rank")
        .join(known, on=list(KEY), how="inner")
        .drop_nulls(["own_ns", *LOADS])
    )
    return rows.filter(pl.len().over(KEY) == pl.col("ranks_in_group")).sort(*KEY, "rank")


def _idle(rows: pl.DataFrame) -> str | None:
    """Return which rank of a group has no GPU time: its kernels are missing, and it is not fast."""
    idle = rows.group_by("rank").agg(pl.col("own_ns").sum()).filter(pl.col("own_ns") == 0)["rank"].sort().to_list()
    return f"rank {idle[0]} has no GPU time in MoE layers" if idle else None


def _unknown(speeds: Mapping[int, tuple[float, float, int]]) -> str | None:
    """Return why the speeds of a group's ranks are not known."""
    if not speeds:
        return "no rank's time is known at a load that the others have too"
    rows = min(number for _, _, number in speeds.values())
    if rows < LEAST_ROWS:
        return f"{rows} (step, layer), at least {LEAST_ROWS} needed"
    if not max(error for _, error, _ in speeds.values()) <= LARGEST_ERROR:
        return "loads of the ranks differ too much to compare their time at the same load"
    return None


def _speeds(rows: pl.DataFrame) -> dict[int, tuple[float, float, int]]:
    """Return each rank's time at the mean load over the group's mean time, its standard error, and its rows."""
    every = -(-len(rows) // MOST_ROWS)
    rows = rows.filter(pl.col("step").rank("dense") % every == 0) if every > 1 else rows
    rows = rows.filter(pl.col("own_ns").mean().over(KEY) > 0)
    ranks, rank = np.unique(rows["rank"].to_numpy(), return_inverse=True)
    relative = rows.select(
        pl.col("own_ns") / pl.col("own_ns").mean().over(KEY),
        *((pl.col(load) / pl.col(load).mean().over(KEY)).fill_nan(1.0) - 1 for load in LOADS),
    ).to_numpy()
    if len(rows) <= len(ranks) + len(LOADS):
        return {int(number): (1.0, np.inf, int((rank == at).sum())) for at, number in enumerate(ranks)}
    columns = np.column_stack([(rank[:, None] == np.arange(len(ranks))).astype(np.float64), relative[:, 1:]])
    values, error = _fit(relative[:, 0], columns)
    mean = values[: len(ranks)].mean()
    numbers = np.bincount(rank, minlength=len(ranks))
    return {
        int(number): (float(values[at] / mean), float(error[at] / mean), int(numbers[at]))
        for at, number in enumerate(ranks)
    }


def _fit(y: Floats, columns: Floats) -> tuple[Floats, Floats]:
    """Return coefficients and standard errors; columns that say nothing get 0."""
    weight = np.ones(len(y))
    values = np.zeros(columns.shape[1])
    for _ in range(TURNS):
        root = np.sqrt(weight)
        values = np.linalg.lstsq(columns * root[:, None], y * root, rcond=1e-8)[0].astype(np.float64)
        residuals = np.abs(y - columns @ values)
        scale = max(1e-9, float(np.median(residuals)) / 0.6745)
        weight = np.minimum(1.0, HUBER_K * scale / np.maximum(residuals, 1e-12))
    inverse = np.linalg.pinv((columns * weight[:, None]).T @ columns, rcond=1e-10, hermitian=True)
    free = max(1.0, len(y) - np.linalg.matrix_rank(columns))
    clipped = weight * (y - columns @ values)
    error: Floats = np.sqrt(np.diag(inverse) * (clipped @ clipped) / free)
    return values, error
