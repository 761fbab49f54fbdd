"""Steps were captured, and each to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvtxmoe_analysis.checks.check import Check, failed, passed
from nvtxmoe_analysis.core.text import number

if TYPE_CHECKING:
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 90
EXPORTS_ONLY = True

NAME = "steps_closed"


def check(results: RunMetrics) -> Check:
    """There is a moe.step range, and none that the end of the capture cut off."""
    steps = sum(len(report.steps) for report in results.reports)
    unclosed = sum(report.steps["end"].null_count() for report in results.reports)
    started = sum(report.events.problems["start_end_steps"] for report in results.reports)
    evidence = {"steps": steps, "unclosed": unclosed}
    if not steps:
        return failed(NAME, f"{no_step(started)}.", **evidence)
    if unclosed:
        return failed(NAME, f"{number(unclosed, 'step')} still open when the capture ended.", **evidence)
    return passed(NAME, f"{number(steps, 'step')}, each closed.", **evidence)


def no_step(started: int) -> str:
    """The sentence on a capture without moe.step range, without a full stop.

    Parameters:
        started: number of start/end ranges of that name.
    """
    if started:
        return (
            f"No push/pop range moe.step, but {number(started, 'start/end range')} of that name (eventType 60), which "
            "are on no thread: emit moe.step with push and pop"
        )
    return "No moe.step range: no step was recorded"
