"""moe_waterfall: where the GPU time of MoE layers goes, in bars that add up exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from nvtxmoe_analysis.outputs.spec import INTEGER, TEXT, Column, Table

if TYPE_CHECKING:
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

TABLE = Table(
    name="waterfall",
    stem="moe_waterfall",
    order=136,
    meaning="where the GPU time of MoE layers goes, by step, in bars that add up to it",
    gpu=True,
    columns=(
        Column("group", INTEGER, "lowest rank of those that share experts"),
        Column("step", INTEGER, "number of the step; null: all steps"),
        Column("step_kind", TEXT, "prefill, decode, mixed; null with a null step: all kinds"),
        Column(
            "bar",
            TEXT,
            "ideal, further_experts, padding, rest, other_work, uneven_ranks, unequal_speed, "
            "waiting, transfer, collectives_not_split; total",
        ),
        Column("time_ns", INTEGER, "sum over the group's ranks; null if unknown"),
        Column("low_ns", INTEGER, "lower end of the 95 % interval of an estimate"),
        Column("high_ns", INTEGER, "upper end of the 95 % interval of an estimate"),
        Column("how", TEXT, "measured, estimated, remainder"),
        Column("reason", TEXT, "why it is unknown or uncertain"),
    ),
    whole=("group", "bar"),
    key=("group", "step", "step_kind", "bar"),
    note="the bars of a step add up to its total; see [waterfall](../explanation/waterfall.md)",
)


def build(results: RunMetrics) -> pl.DataFrame:
    """A row per group, step and bar; sums over steps come first."""
    from nvtxmoe_analysis.metrics.waterfall.waterfall import waterfall  # noqa: PLC0415  see registry
    from nvtxmoe_analysis.run.parallel_groups import EXPERT  # noqa: PLC0415  see registry

    copies = results.layers.select("memcpy_time_ns", "memset_time_ns")
    times = results.correlation.select("kernel_time_ns", "collective_inferred_ns", "own_ns")
    cells = pl.concat([results.expert_work, times, copies], how="horizontal")
    groups, ranks = results.rank_groups[EXPERT], results.selection.ranks
    filtered = ranks is not None and not set(groups["rank"].to_list()) <= ranks
    return waterfall(cells, results.stragglers, results.correlation, groups, filtered=filtered)
