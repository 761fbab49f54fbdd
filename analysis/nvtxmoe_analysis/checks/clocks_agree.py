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
    clock_report = describe(results.collective_split, results.reports)
    residuals = [part["median_residual_us"] for part in clock_report["by_report"] if "median_residual_us" in part]
    evidence: dict[str, JsonValue] = {
        "verdict": clock_report["verdict"],
        "collectives_compared": clock_report["collectives_compared"],
        "contradictions": clock_report["contradictions"],
        "not_simultaneous_kernels": clock_report["not_simultaneous_kernels"],
        "closest_us": clock_report["closest_us"],
        "median_residual_us": max(residuals, default=None),
    }
    if clock_report["verdict"] == NOTHING:
        return not_applicable(NAME, clock_report["statement"], **evidence)
    good = clock_report["verdict"] in (AGREE, CORRECTED)
    return (passed if good else warned)(NAME, clock_report["statement"], **evidence)
