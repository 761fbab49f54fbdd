"""Every kernel has a name."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, failed, not_applicable, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 224
EXPORTS_ONLY = True

NAME = "kernels_named"


def check(results: RunMetrics) -> Check:
    """The names of all kernels of steps are in StringIds: classes of work outside layers and collectives go by them."""
    unnamed = sum(report.unnamed_operations for report in results.reports)
    if unnamed:
        return failed(
            NAME,
            f"{number(unnamed, 'GPU operation')} without a name: StringIds lacks the id. Their kind of work "
            "(collective, attention, ...) is unknown, and own_ns may contain collectives.",
            unnamed=unnamed,
        )
    if not any(report.operations for report in results.reports):
        return not_applicable(NAME, "No GPU operation in the capture.", unnamed=0)
    return passed(NAME, "Every kernel has its name.", unnamed=0)
