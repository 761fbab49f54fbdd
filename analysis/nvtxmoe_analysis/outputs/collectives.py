"""moe_collectives: every collective kernel, how long it waited and how long it transferred."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from nvtxmoe_analysis.core.arrays import AnyInts
from nvtxmoe_analysis.core.grouping import codes, narrowed, packed
from nvtxmoe_analysis.outputs.spec import BOOLEAN, INTEGER, TEXT, Column, Table

if TYPE_CHECKING:
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

TABLE = Table(
    name="collectives",
    stem="moe_collectives",
    order=150,
    meaning="waiting and transfer of each collective on each rank",
    recipe="moe_straggler",
    gpu=True,
    columns=(
        Column("step", INTEGER, "number of the step"),
        Column("layer_idx", INTEGER, "MoE layer; null: tied to none"),
        Column(
            "ordinal",
            INTEGER,
            "index from 0 among the rank's kernels of this name: in this phase of the layer, or "
            "outside layers in the step",
        ),
        Column("kernel_name", TEXT, "demangled name"),
        Column("inferred", BOOLEAN, "true: the layer was inferred, not given by ranges"),
        Column("rank", INTEGER, "global rank"),
        Column("start_ns", INTEGER, "start in the report's own time"),
        Column("duration_ns", INTEGER, "duration of the kernel"),
        Column("wait_ns", INTEGER, "time until the last rank began"),
        Column("transfer_ns", INTEGER, "rest of the duration"),
        Column("last_rank", INTEGER, "rank that began last"),
        Column("phase", TEXT, "phase of the layer; null: launched in none"),
        Column("group_kind", TEXT, "expert, data, tensor"),
        Column("group", INTEGER, "lowest rank of the group"),
        Column("ranks", INTEGER, "ranks in the group"),
        Column("reason", TEXT, "why it could not be split; wait_ns and all later columns but phase are then null"),
    ),
    whole=("ordinal", "inferred", "start_ns", "duration_ns"),
    reasoned=("wait_ns", "transfer_ns", "last_rank", "group_kind", "group", "ranks"),
    note="one row per collective kernel in a step; none with one rank",
)

SORTED_BY = ("step", "layer", "kernel_name", "ordinal", "phase", "rank")


def build(results: RunMetrics) -> pl.DataFrame:
    """One row per collective kernel in a step; empty where no rank works with another."""
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
    """Positions of rows, by the columns of SORTED_BY, nulls last: UInt32.

    With one number for all of them; a sort by several columns would take many bytes a row.
    """
    key = pl.Series(packed([_numbers(split[name]) for name in SORTED_BY]))
    return rows.gather(key.gather(rows).arg_sort())


def _numbers(values: pl.Series) -> AnyInts:
    """Numbers that rise as the values do, the highest where null."""
    if values.dtype == pl.String:
        number = codes(values)
        return np.where(number < 0, number.max(initial=-1) + 1, number)
    largest: int = values.max() or 0  # type: ignore[assignment]
    return narrowed(values.fill_null(largest + 1).to_numpy())
