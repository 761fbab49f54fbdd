"""Reductions of MoE results can be told from other work."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, not_applicable, passed, warned
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 230
EXPORTS_ONLY = True

NAME = "collectives_seen"


def check(results: RunMetrics) -> Check:
    """Where ranks share a layer, moe.collective stands around its reduction. A warning only: times stay right, and
    collectives that can be inferred (see ``collectives``) have a column of their own."""
    shared = ranges = inferred = exchanged = 0
    for report in results.reports:
        sharing = [m for m in report.metas.values() if m.tp_size > 1 or int(m.raw.get("ep_size") or 1) > 1]
        shared += len(sharing)
        # Data-parallel ranks exchange tokens inside the layer: nothing is reduced after it, and no range stands there.
        exchanged += sum(m.tp_size == 1 and int(m.raw.get("dp_size") or 1) > 1 for m in sharing)
        ranges += report.collective_ranges
        inferred += int(report.collectives["inferred"].sum())
    evidence = {"processes_that_share_layers": shared, "collective_ranges": ranges, "inferred": inferred}
    if not shared:
        return not_applicable(NAME, "No rank shares a layer with another.", **evidence)
    if not (ranges or inferred) and exchanged == shared:
        message = "Data-parallel ranks exchange tokens inside their layers; no collective was seen right after a layer."
        return passed(NAME, message, **evidence)
    if not ranges:
        tied = f"; {inferred:,} right after a layer are tied to it, in collective_inferred_ns" if inferred else ""
        return warned(
            NAME,
            f"No moe.collective range: reductions of MoE results after their layers count outside them{tied}. The time "
            "of a collective includes waiting for other ranks.",
            **evidence,
        )
    return passed(NAME, f"{number(ranges, 'moe.collective range')}.", **evidence)
