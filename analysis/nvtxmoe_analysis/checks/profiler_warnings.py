"""What nsys itself said about losses."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, passed, warned
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 250
EXPORTS_ONLY = True

NAME = "profiler_warnings"


def check(results: RunMetrics) -> Check:
    """nsys reports no lost events. A warning only: captures with such a report have been found complete."""
    warnings = sorted({text for report in results.reports for text in report.warnings})
    if warnings:
        return warned(
            NAME,
            f"nsys says: {' '.join(warnings)} The other checks tell whether anything is missing.",
            messages=list(warnings),
        )
    return passed(NAME, "nsys reported no lost events.", messages=[])
