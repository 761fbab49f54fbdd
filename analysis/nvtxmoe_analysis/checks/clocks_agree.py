"""The ranks' clocks agree: no rank ends a collective before the last has begun."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, JsonValue, not_applicable, passed, warned
from nvtxmoe_analysis.metrics.clock_verdict import AGREE, CORRECTED, NOTHING, describe
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 240
EXPORTS_ONLY = True

NAME = "clocks_agree"


def check(results: RunMetrics) -> Check:
    """Collectives matched across ranks hold together in time. A warning only: every other number stands without it."""
    if not results.several_ranks:
        return not_applicable(NAME, "No rank works with another.")
    said = describe(results.collective_split, results.reports)
    residuals = [one["median_residual_us"] for one in said["by_report"] if "median_residual_us" in one]
    figures: dict[str, JsonValue] = {
        "verdict": said["verdict"],
        "collectives_compared": said["collectives_compared"],
        "contradictions": said["contradictions"],
        "not_simultaneous_kernels": said["not_simultaneous_kernels"],
        "closest_us": said["closest_us"],
        "median_residual_us": max(residuals, default=None),
    }
    if said["verdict"] == NOTHING:
        return not_applicable(NAME, said["statement"], **figures)
    good = said["verdict"] in (AGREE, CORRECTED)
    return (passed if good else warned)(NAME, said["statement"], **figures)
