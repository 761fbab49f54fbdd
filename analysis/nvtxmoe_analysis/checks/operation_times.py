"""The times of GPU operations are possible."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.attribution.placed import IMPLAUSIBLE, REASONS
from nvtxmoe_analysis.checks.check import Check, JsonValue, failed, not_applicable, passed, warned
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 218
EXPORTS_ONLY = True

NAME = "operation_times"
#: Share of all operations from which on impossible times outside steps make a capture incomplete.
MOST_SHARE = 0.001
#: Share of all operations that may go on beside later ones of their stream.
MOST_OVERLAPPING = 0.5


def check(results: RunMetrics) -> Check:
    """No operation has impossible times (``attribution.operation_times``): such operations count in no sum.

    An operation that was launched in a step is missing in the step's times, so one is enough for an incomplete capture.
    Of others, launched in warm-up or graph capture, MOST_SHARE of all operations are tolerated. If most operations run
    beside later ones of their stream, durations are wrong as a whole.
    """
    coverage = pl.concat([report.coverage for report in results.reports])
    bad = (
        coverage.filter(pl.col("class") == IMPLAUSIBLE)
        .group_by("reason")
        .agg(pl.col("operations").sum())
        .sort(["operations", "reason"], descending=[True, False])
    )
    total, lost = int(coverage["operations"].sum()), int(bad["operations"].sum())
    in_steps = sum(report.implausible_in_steps for report in results.reports)
    reasons: dict[str, JsonValue] = {REASONS[reason]: count for reason, count in bad.rows()}
    evidence: dict[str, JsonValue] = {
        "operations": total,
        "implausible": lost,
        "implausible_in_steps": in_steps,
        "reasons": reasons,
    }
    if not total:
        return not_applicable(NAME, "No GPU operation in the capture.", **evidence)
    sources = [report.source.name for report in results.reports if not report.clocks_agree]
    if sources:
        # Their starts are not judged one by one, so nothing vouches for the time of any of them.
        return failed(
            NAME,
            f"Most GPU operations of {', '.join(sources)} start at impossible times for their launch calls: the GPU's "
            "times do not fit the CPU's. Durations do not depend on it; waits and idle times do.",
            **evidence,
            clocks_differ=list[JsonValue](sources),
        )
    overlapping = sum(report.disordered["overlapping"] for report in results.reports)
    if overlapping > MOST_OVERLAPPING * total:
        return failed(
            NAME,
            f"{overlapping:,} of {number(total, 'GPU operation')} go on while two later ones of their stream have "
            "begun: no GPU does that, so durations or starts are not those of the run.",
            **evidence,
            overlapping=overlapping,
        )
    if not lost:
        return passed(NAME, f"The times of all {number(total, 'GPU operation')} are possible.", **evidence)
    listed = ", ".join(f"{REASONS[reason]} {count:,}" for reason, count in bad.rows())
    message = (
        f"{lost:,} of {number(total, 'GPU operation')} {'has' if lost == 1 else 'have'} impossible times "
        f"({listed}; {in_steps:,} launched in steps): no sum includes them."
    )
    serious = in_steps or lost > MOST_SHARE * total
    return (failed if serious else warned)(NAME, message, **evidence)
