"""Reductions of MoE results can be told from other work."""

from __future__ import annotations

from nvtxmoe import schema
from nvtxmoe_analysis.checks.model import Check, not_applicable, number, passed, warned
from nvtxmoe_analysis.results import Results

NAME = "collectives_seen"


def check(results: Results) -> Check:
    """Where ranks share a layer, moe.collective stands around its reduction. A warning only: times stay right."""
    shared = ranges = 0
    for report in results.reports:
        shared += sum(m.tp_size > 1 or int(m.raw.get("ep_size") or 1) > 1 for m in report.metas.values())
        ranges += int((report.events.ranges["name"] == schema.COLLECTIVE).sum())
    figures = {"processes_that_share_layers": shared, "collective_ranges": ranges}
    if not shared:
        return not_applicable(NAME, "No rank shares a layer with another.", **figures)
    if not ranges:
        return warned(
            NAME,
            "No moe.collective range: reductions of MoE results after their layers count outside them. The time of a "
            "collective includes waiting for other ranks.",
            **figures,
        )
    return passed(NAME, f"{number(ranges, 'moe.collective range')}.", **figures)
