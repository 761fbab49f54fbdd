"""All ranks of the run are in the inputs."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, JsonValue, failed, not_applicable, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 30
EXPORTS_ONLY = False

NAME = "ranks_present"


def check(results: RunMetrics) -> Check:
    """Ranks 0 to world_size - 1 of one run each have a process here."""
    metas = [meta for report in results.reports for meta in report.metas.values()]
    if not metas:
        return not_applicable(NAME, "No moe.meta tells the world size.")
    present = sorted({meta.rank for meta in metas})
    world_size = max(meta.world_size for meta in metas)
    missing = sorted(set(range(world_size)) - set(present))
    evidence: dict[str, JsonValue] = {"world_size": world_size, "present": list(present), "missing": list(missing)}
    sizes = sorted({meta.world_size for meta in metas})
    if len(sizes) > 1:
        return failed(NAME, f"Processes disagree on the world size: {', '.join(map(str, sizes))}.", **evidence)
    if missing:
        return failed(
            NAME,
            f"{number(len(missing), 'rank')} of {world_size} missing: {', '.join(map(str, missing))}. "
            f"Give every rank's {'journal' if results.direct else 'report'}.",
            **evidence,
        )
    return passed(NAME, f"All {number(world_size, 'rank')} present.", **evidence)
