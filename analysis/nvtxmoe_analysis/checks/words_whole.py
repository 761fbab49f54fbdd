"""Payloads spelled as words arrived whole."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, failed, not_applicable, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 60
EXPORTS_ONLY = True

NAME = "words_whole"


def check(results: RunMetrics) -> Check:
    """No word-form payload is truncated or damaged."""
    truncated = sum(report.events.problems["words_truncated"] for report in results.reports)
    damaged = sum(report.events.problems["words_damaged"] for report in results.reports)
    if truncated or damaged:
        return failed(
            NAME,
            f"{number(damaged, 'word-form payload')} lost words, {truncated:,} broke off with the capture's end.",
            truncated=truncated,
            damaged=damaged,
        )
    if not any(report.events.encoding == "words" for report in results.reports):
        return not_applicable(NAME, "Payloads are binary.", truncated=0, damaged=0)
    return passed(NAME, "Every word-form payload is whole.", truncated=0, damaged=0)
