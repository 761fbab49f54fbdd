"""moe_straggler: what imbalance between ranks costs, a table by (step, layer) and a document with totals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from nvtxmoe_analysis.outputs.spec import FLOAT, INTEGER, Column, Document, Table

if TYPE_CHECKING:
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

TABLE = Table(
    name="straggler",
    stem="moe_straggler",
    order=140,
    meaning="what unequal ranks cost, by (step, layer)",
    recipe="moe_straggler",
    gpu=True,
    columns=(
        Column("step", INTEGER, "number of the step"),
        Column("layer_idx", INTEGER, "vLLM's number of the MoE layer"),
        Column("group", INTEGER, "lowest rank of the group"),
        Column("ranks", INTEGER, "ranks whose time is known"),
        Column("ranks_in_group", INTEGER, "ranks of the group"),
        Column("mean_own_ns", FLOAT, "mean over the ranks of the own time"),
        Column("max_own_ns", INTEGER, "largest own time of a rank: the layer's kernels without collectives"),
        Column("excess_ns", FLOAT, "max_own_ns - mean_own_ns; null if not all ranks are known"),
        Column("slowest_rank", INTEGER, "rank with max_own_ns; null if not all ranks are known"),
        Column("collectives", INTEGER, "collectives tied to the layer and split into wait and transfer"),
        Column("wait_ns", INTEGER, "sum of their waits over the ranks; null without any"),
        Column("transfer_ns", INTEGER, "sum of their transfers over the ranks; null without any"),
    ),
    whole=("step", "layer_idx", "group", "ranks", "ranks_in_group", "mean_own_ns", "max_own_ns", "collectives"),
    note="one row per (step, layer) of each group of several ranks; see [stragglers](../explanation/straggler.md)",
)

DOCUMENT = Document(
    name="straggler_document",
    stem="moe_straggler",
    order=40,
    meaning="totals, and how the clocks were aligned",
    recipe="moe_straggler",
    gpu=True,
)


def build(results: RunMetrics) -> pl.DataFrame:
    """One row per (step, layer) of each group of ranks that share the layer's experts; empty where none does."""
    return results.stragglers


def document(results: RunMetrics) -> dict[str, Any]:
    """Totals, per layer, per step; waiting and transfer; how the clocks were aligned. ``reason`` where there is nothing
    to compare; then the other keys but ``ranks`` and ``groups`` are null."""
    from nvtxmoe_analysis.metrics.clock_verdict import describe  # noqa: PLC0415  see registry
    from nvtxmoe_analysis.metrics.straggler_totals import cost, waiting  # noqa: PLC0415  see registry
    from nvtxmoe_analysis.run.parallel_groups import EXPERT  # noqa: PLC0415  see registry

    groups = results.rank_groups[EXPERT]
    fields: dict[str, Any] = {
        "reason": _reason(results, groups),
        "ranks": sorted(groups["rank"].to_list()),
        "groups": [
            {"group": group, "ranks": members["rank"].to_list(), "ranks_in_group": int(members["size"][0])}
            for (group,), members in groups.sort("group", "rank").group_by("group", maintain_order=True)
        ],
    }
    if not results.several_ranks:
        return {**fields, "straggler": None, "collectives": None, "clock": None}
    return {
        **fields,
        "straggler": cost(results.stragglers, results.correlation, groups),
        "collectives": waiting(results.collective_split.frame),
        "clock": describe(results.collective_split, results.reports),
    }


def _reason(results: RunMetrics, groups: pl.DataFrame) -> str | None:
    if results.several_ranks:
        return None
    ranks = groups["rank"].to_list()
    if not ranks:
        return "No moe.meta says which ranks work together."
    if len(ranks) == 1:
        return f"Only rank {ranks[0]} was captured: there is no other to compare it with."
    return "No two of the captured ranks work together."
