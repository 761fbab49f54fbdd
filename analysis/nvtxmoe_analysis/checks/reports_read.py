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
    evidence: dict[str, JsonValue] = {"reports": total, "failed": [str(failure.source) for failure in results.failed]}
    if total == 1:
        return not_applicable(NAME, "One report.", **evidence)
    if results.failed:
        shown_errors = "; ".join(failure.error for failure in results.failed[:MOST_TOLD])
        more = len(results.failed) - MOST_TOLD
        return failed(
            NAME,
            f"{number(len(results.failed), 'report')} of {total} could not be read. Rows of the ranks that were read "
            "are whole; sums over ranks, waiting and stragglers lack the others: "
            f"{shown_errors}{f'; and {more} more' if more > 0 else ''}",
            **evidence,
        )
    return passed(NAME, f"All {total:,} reports were read.", **evidence)
