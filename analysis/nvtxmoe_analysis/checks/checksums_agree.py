"""Counts are as they were captured."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, failed, not_applicable, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 52
EXPORTS_ONLY = True

NAME = "checksums_agree"


def check(results: RunMetrics) -> Check:
    """Each mark of counts has the checksum that capture wrote into it.

    Counts that differ from their checksum are in no table. The word form and older captures have no checksums. Only
    sampled tokens (topk_agrees) and sums (counts_sum) check their counts.
    """
    seen = [report.events.checksums for report in results.reports]
    marks, checked, broken = (
        sum(getattr(checksums, name) for checksums in seen) for name in ("marks", "checked", "broken")
    )
    evidence = {"marks": marks, "checked": checked, "broken": broken}
    if broken:
        return failed(
            NAME,
            f"{broken:,} of {number(checked, 'mark')} of counts changed after capture: their checksums differ, and "
            "their counts are in no table.",
            **evidence,
        )
    if not checked:
        return not_applicable(
            NAME,
            "The marks of counts have no checksum (captured by an older nvtxmoe, or in the word form).",
            **evidence,
        )
    return passed(NAME, f"{number(checked, 'mark')} of counts agree with their checksums.", **evidence)
