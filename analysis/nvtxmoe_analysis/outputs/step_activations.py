"""moe_step_activations: the counts of every step themselves, from which all other tables of counts can be made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from nvtxmoe_analysis.core.grouping import in_order
from nvtxmoe_analysis.outputs.spec import COUNTS, INTEGER, Column, Table

if TYPE_CHECKING:
    from nvtxmoe_analysis.events.tables import CountTable
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

TABLE = Table(
    name="step_activations",
    stem="moe_step_activations",
    order=50,
    meaning="the counts of every (rank, step, layer), as a list by expert",
    recipe="moe_expert_sum",
    forms=("parquet",),
    columns=(
        Column("rank", INTEGER, "lowest rank of the group"),
        Column("step", INTEGER, "number of the step"),
        Column("layer_idx", INTEGER, "vLLM's number of the MoE layer"),
        Column("num_tokens", INTEGER, "scheduled tokens of the rank in the step"),
        Column("counts", COUNTS, "List(UInt32): assignments of expert 0, 1, ...; as many as the cell has experts"),
    ),
    whole=("rank", "step", "layer_idx", "num_tokens", "counts"),
    note=(
        "one row for every cell of counts, from which every other number about counts can be made again; always "
        "Parquet (zstd), not in `--sqlite`"
    ),
)


def build(results: RunMetrics) -> pl.DataFrame:
    """One row per (step, layer) of each group of ranks that shares tokens.

    The lists have the smallest unsigned type that holds all counts, in the file UInt32.
    """
    counts = results.routing.counts
    frame = counts.cells.select("rank", "step", pl.col("layer").alias("layer_idx"), "num_tokens")
    with_counts = frame.with_columns(counts=_lists(counts))
    by = ("rank", "step", "layer_idx")
    if in_order(*(frame[name].to_numpy() for name in by)):  # as a rule: a large table is not copied
        return with_counts
    return with_counts.sort(by, maintain_order=True)


def _lists(counts: CountTable) -> pl.Series:
    """A list per cell, without its padding; on the matrix's own memory where there is none."""
    width = counts.matrix.shape[1]
    padded = pl.DataFrame({"counts": pl.Series(counts.matrix).arr.to_list(), "experts": counts.cells["num_experts"]})
    if (padded["experts"] == width).all():
        return padded["counts"]
    return padded.select(pl.col("counts").list.head("experts")).to_series()
