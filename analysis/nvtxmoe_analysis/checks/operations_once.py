"""No GPU operation was recorded twice."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, failed, not_applicable, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 222
EXPORTS_ONLY = True

NAME = "operations_once"


def check(results: RunMetrics) -> Check:
    """No two operations share process, correlation id, graph node, start, end and name."""
    repeated = sum(report.repeated_operations for report in results.reports)
    total = sum(report.operations for report in results.reports)
    if repeated:
        return failed(
            NAME,
            f"{repeated:,} of {total:,} GPU operations repeat another one's process, correlation id, graph node, "
            "times and name: sums contain them more than once.",
            operations=total,
            repeated=repeated,
        )
    if not total:
        return not_applicable(NAME, "No GPU operation in the capture.", operations=0, repeated=0)
    return passed(NAME, f"{number(total, 'GPU operation')}, each recorded once.", operations=total, repeated=0)
