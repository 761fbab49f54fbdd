"""What nsys itself said about losses."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, passed, warned
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 250
EXPORTS_ONLY = True

NAME = "profiler_warnings"


def check(results: RunMetrics) -> Check:
    """Diagnostics of nsys that speak of lost events. A warning only: captures with one have been found whole."""
    found = sorted({text for report in results.reports for text in report.warnings})
    if found:
        return warned(
            NAME,
            f"nsys says: {' '.join(found)} The other checks tell whether anything is missing.",
            messages=list(found),
        )
    return passed(NAME, "nsys reported no lost events.", messages=[])
