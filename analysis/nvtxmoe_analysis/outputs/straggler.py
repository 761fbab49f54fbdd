"""moe_straggler: what imbalance between ranks costs, a table by (step, layer) and a document with totals."""

from __future__ import annotations

from typing import Any

import polars as pl

from nvtxmoe_analysis.metrics.clock_verdict import describe
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics
from nvtxmoe_analysis.metrics.straggler import stragglers
from nvtxmoe_analysis.metrics.straggler_totals import cost, waiting
from nvtxmoe_analysis.run.parallel_groups import EXPERT


def build(results: RunMetrics) -> pl.DataFrame:
    """One row a (step, layer) of each group of ranks that share the layer's experts; empty where none does.

    Columns: ``step``, ``layer_idx``, ``group`` (its lowest rank), ``ranks`` (whose time is known), ``ranks_in_group``,
    ``mean_own_ns`` and ``max_own_ns`` (over the ranks, of the layer's kernels but its collectives), ``excess_ns``
    (max - mean; null where not all ranks are known), ``slowest_rank`` (likewise), ``collectives`` (tied to the layer,
    split), ``wait_ns`` and ``transfer_ns`` (sums over them and the ranks; null without any).
    """
    split = results.collective_split.frame.lazy().filter("kept")
    return stragglers(results.correlation, results.rank_groups[EXPERT], split)


def document(results: RunMetrics) -> dict[str, Any]:
    """Totals, per layer, per step; waiting and transfer; how the clocks were aligned. ``reason`` where there is nothing
    to compare; then the other keys but ``ranks`` and ``groups`` are null."""
    groups = results.rank_groups[EXPERT]
    said: dict[str, Any] = {
        "reason": _reason(results),
        "ranks": sorted(groups["rank"].to_list()),
        "groups": [
            {"group": group, "ranks": mine["rank"].to_list(), "ranks_in_group": int(mine["size"][0])}
            for (group,), mine in groups.sort("group", "rank").group_by("group", maintain_order=True)
        ],
    }
    if not results.several_ranks:
        return {**said, "straggler": None, "collectives": None, "clock": None}
    return {
        **said,
        "straggler": cost(build(results), results.correlation, groups),
        "collectives": waiting(results.collective_split.frame),
        "clock": describe(results.collective_split, results.reports),
    }


def _reason(results: RunMetrics) -> str | None:
    if results.several_ranks:
        return None
    ranks = results.rank_groups[EXPERT]["rank"].to_list()
    if not ranks:
        return "No moe.meta says which ranks work together."
    if len(ranks) == 1:
        return f"Only rank {ranks[0]} was captured: there is no other to compare it with."
    return "No two of the captured ranks work together."
