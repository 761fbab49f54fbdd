"""Times of a run in which placements of experts took turns, and by how much each placement changed them.

The run is that of scripts/gpu/placement_run.py with --predicted. Its blocks hold every placement once, so each block
gives one difference to today's placement, and a drift from block to block is in none of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nvtxmoe_analysis.placement.run_data import DECODE, PREFILL
from nvtxmoe_analysis.stats.student_t import quantile

TODAY = "today"
#: Steps at the start of a window of decode that do not count: the prefill of its prompts, the first decode steps.
COLD_STEPS = 3
KEYS = ("case", "placement", "phase")
#: The name of both phases together.
ALL = "all"


def layer_times(results: Path) -> pl.DataFrame:
    """Return the times of every (step, layer) with tokens.

    Parameters:
        results: folder with moe_layer_timings.csv and moe_straggler.csv.

    Returns:
        step, layer_idx, prefill (whether the step has any prefill token), own_ns (own kernel time of the slowest rank)
        and elapsed_ns (int64, mean over ranks): from the end of the layer before to the end of this one, of the
        first layer from its own start. So the layers of a step add up to its time from the first MoE layer's first
        kernel to the last layer's last.
    """
    own = (
        pl.read_csv(results / "moe_straggler.csv").group_by("step", "layer_idx").agg(own_ns=pl.col("max_own_ns").max())
    )
    timings = pl.read_csv(results / "moe_layer_timings.csv").sort("rank", "step", "layer_idx")
    before = pl.col("gpu_end_ns").shift(1).over("rank", "step").fill_null(pl.col("gpu_start_ns"))
    layers = (
        timings.with_columns(elapsed_ns=pl.col("gpu_end_ns") - before)
        .group_by("step", "layer_idx")
        .agg(
            prefill=pl.col("prefill_tokens").sum() > 0,
            elapsed_ns=pl.col("elapsed_ns").mean().round().cast(pl.Int64),
            tokens=pl.col("num_tokens").sum(),
        )
        .filter(pl.col("tokens") > 0)
        .drop("tokens")
    )
    times = layers.join(own, on=["step", "layer_idx"]).drop_nulls().sort("step", "layer_idx")
    return times.select("step", "layer_idx", "prefill", "own_ns", "elapsed_ns")


def in_windows(times: pl.DataFrame, windows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Return the times of the steps in windows, with case, placement, phase and block.

    A window's first decode steps are left out, see ``COLD_STEPS``. A step with any prefill token is prefill, as for
    ``nvtxmoe place``.

    Parameters:
        times: of ``layer_times``.
        windows: what scripts/gpu/placement_run.py wrote.
    """
    placed = pl.DataFrame(
        [
            {"step": step, "case": window["case"], "placement": window["placement"], "block": window["block"], "at": at}
            for window in windows
            for at, step in enumerate(range(window["steps"][0], window["steps"][1] + 1))
        ]
    )
    phase = pl.when("prefill").then(pl.lit(PREFILL)).otherwise(pl.lit(DECODE))
    rows = times.join(placed, on="step").with_columns(phase=phase)
    return rows.filter(pl.col("prefill") | (pl.col("at") >= COLD_STEPS)).drop("prefill", "at")


def block_means(times: pl.DataFrame, of: str, by: Sequence[str] = ()) -> pl.DataFrame:
    """Return the mean time per step of each case, placement, phase and block: KEYS, block, BY, ns.

    Parameters:
        times: of ``in_windows``.
        of: the column of the time.
        by: ("layer_idx",) for each layer, () for their sum.
    """
    steps = times.group_by(*KEYS, "block", "step", *by).agg(ns=pl.col(of).sum())
    return steps.group_by(*KEYS, "block", *by).agg(pl.col("ns").mean())


def over_phases(means: pl.DataFrame, shares: pl.DataFrame) -> pl.DataFrame:
    """Return the means over both phases, as the phase ``ALL``.

    Parameters:
        means: of ``block_means``.
        shares: case, phase, share: the phase's share of the steps. Blocks without one of a case's phases are left out.
    """
    return (
        means.join(shares, on=["case", "phase"])
        .group_by("case", "placement", "block")
        .agg(ns=(pl.col("ns") * pl.col("share")).sum(), share=pl.col("share").sum())
        .filter(pl.col("share") > 1 - 1e-9)
        .select("case", "placement", "block", "ns", phase=pl.lit(ALL))
    )


def changes(means: pl.DataFrame, by: Sequence[str] = (), confidence: float = 0.95) -> pl.DataFrame:
    """Return the change against today's placement: the mean over the blocks' differences, with its interval.

    Returns:
        KEYS, BY, today_ns, change_ns, low_ns, high_ns (by Student's t; null with one block) and blocks.
    """
    today = means.filter(pl.col("placement") == TODAY).drop("placement").rename({"ns": "today_ns"})
    pairs = means.filter(pl.col("placement") != TODAY).join(today, on=["case", "phase", "block", *by])
    difference = pl.col("ns") - pl.col("today_ns")
    units = pairs.group_by(*KEYS, *by).agg(
        today_ns=pl.col("today_ns").mean(),
        change_ns=difference.mean(),
        error_ns=difference.std() / pl.len().sqrt(),
        blocks=pl.len(),
    )
    widths = quantile(confidence, np.maximum(units["blocks"].to_numpy() - 1, 1))
    half = pl.col("error_ns") * pl.Series(widths, dtype=pl.Float64)
    return (
        units.with_columns(low_ns=pl.col("change_ns") - half, high_ns=pl.col("change_ns") + half)
        .select(*KEYS, *by, "today_ns", "change_ns", "low_ns", "high_ns", "blocks")
        .sort(*KEYS, *by)
    )
