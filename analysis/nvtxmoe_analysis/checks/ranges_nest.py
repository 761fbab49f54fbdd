"""Ranges nest."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, failed, passed
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 210
EXPORTS_ONLY = True

NAME = "ranges_nest"


def check(results: RunMetrics) -> Check:
    """No two ranges of a thread cross; work launched where two do is unplaced."""
    crossing = sum(report.crossings for report in results.reports)
    if crossing:
        return failed(NAME, f"{crossing:,} ranges cross another of their thread.", crossing=crossing)
    return passed(NAME, "All ranges nest.", crossing=0)
