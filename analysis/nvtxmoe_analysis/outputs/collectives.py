"""moe_collectives: every collective kernel, how long it waited and how long it transferred."""

from __future__ import annotations

import numpy as np
import polars as pl

from nvtxmoe_analysis.core.arrays import AnyInts
from nvtxmoe_analysis.core.grouping import codes, narrowed, packed
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = ("step", "layer", "kernel_name", "ordinal", "phase", "rank")


def build(results: RunMetrics) -> pl.DataFrame:
    """One row a collective kernel in a step; empty where no rank works with another.

    Columns: ``step``, ``layer_idx`` (null: tied to none), ``ordinal`` (of the rank's kernels of this name in this
    layer's phase of the step, or outside layers in the step, the how manieth, from 0), ``kernel_name``, ``inferred``
    (the layer was not told by ranges), ``rank``, ``start_ns`` (the report's own time), ``duration_ns``, ``wait_ns``
    (until the last rank began), ``transfer_ns`` (the rest), ``last_rank`` (which one began last), ``phase``,
    ``group_kind`` (expert, data, tensor: what kind of group took part), ``group`` (its lowest rank), ``ranks`` (how
    many it has), ``reason`` (why it could not be split: then the columns from ``wait_ns`` on but ``phase`` are null).
    """
    split = results.collective_split.frame
    rows = split["kept"].arg_true() if results.several_ranks else pl.Series([], dtype=pl.UInt32)
    return split.select(
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
    )[_in_order(split, rows)]


def _in_order(split: pl.DataFrame, rows: pl.Series) -> pl.Series:
    """Positions of rows, by the columns of ORDER, nulls last: UInt32.

    With one number for all of them; a sort by several columns would take many bytes a row.
    """
    key = pl.Series(packed([_numbers(split[name]) for name in ORDER]))
    return rows.gather(key.gather(rows).arg_sort())


def _numbers(values: pl.Series) -> AnyInts:
    """Numbers that rise as the values do, the highest where null."""
    if values.dtype == pl.String:
        number = codes(values)
        return np.where(number < 0, number.max(initial=-1) + 1, number)
    most: int = values.max() or 0  # type: ignore[assignment]
    return narrowed(values.fill_null(most + 1).to_numpy())
