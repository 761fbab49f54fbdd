"""All ranks of the run are in the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nvtxmoe_analysis.checks.capture_healthy import ranks_changed
from nvtxmoe_analysis.checks.check import Check, JsonValue, failed, not_applicable, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.events.meta import Meta

if TYPE_CHECKING:
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
        return failed(NAME, f"{sizes_differ(metas)}.", **evidence)
    if missing:
        return failed(
            NAME,
            f"{number(len(missing), 'rank')} of {world_size} missing: {', '.join(map(str, missing))}. "
            f"Give every rank's {'journal' if results.direct else 'report'}.",
            **evidence,
        )
    return passed(NAME, f"All {number(world_size, 'rank')} present.", **evidence)


def sizes_differ(metas: Sequence[Meta]) -> str:
    """Return a sentence without its full stop on different world sizes; it contains a change that a process reports."""
    sizes = ", ".join(map(str, sorted({meta.world_size for meta in metas})))
    if changes := ranks_changed(meta.capture for meta in metas):
        return f"Ranks changed during the run ({'; '.join(changes)}): processes have the world sizes {sizes}"
    return f"Processes disagree on the world size: {sizes}"
