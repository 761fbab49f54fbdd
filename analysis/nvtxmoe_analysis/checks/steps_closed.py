"""Steps were captured, and each to its end."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, failed, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 90
EXPORTS_ONLY = True

NAME = "steps_closed"


def check(results: RunMetrics) -> Check:
    """There is a moe.step range, and none that the end of the capture cut off."""
    steps = sum(len(report.steps) for report in results.reports)
    unclosed = sum(report.steps["end"].null_count() for report in results.reports)
    figures = {"steps": steps, "unclosed": unclosed}
    if not steps:
        return failed(NAME, "No moe.step range: nothing was scheduled while the capture ran.", **figures)
    if unclosed:
        return failed(NAME, f"{number(unclosed, 'step')} still open when the capture ended.", **figures)
    return passed(NAME, f"{number(steps, 'step')}, each closed.", **figures)
