"""Every report that was named could be read."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, JsonValue, failed, not_applicable, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 10
EXPORTS_ONLY = False

NAME = "reports_read"
#: Reports whose errors the message tells; the validation file has all.
MOST_TOLD = 3


def check(results: RunMetrics) -> Check:
    """No report is missing from the results because it could not be read."""
    total = len(results.reports) + len(results.failed)
    figures: dict[str, JsonValue] = {"reports": total, "failed": [str(one.source) for one in results.failed]}
    if total == 1:
        return not_applicable(NAME, "One report.", **figures)
    if results.failed:
        told = "; ".join(one.error for one in results.failed[:MOST_TOLD])
        more = len(results.failed) - MOST_TOLD
        return failed(
            NAME,
            f"{number(len(results.failed), 'report')} of {total} could not be read. Rows of the ranks that were read "
            "are whole; sums over ranks, waiting and stragglers lack the others: "
            f"{told}{f'; and {more} more' if more > 0 else ''}",
            **figures,
        )
    return passed(NAME, f"All {total:,} reports were read.", **figures)
