"""Every GPU operation has its place."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.attribution.placed import IMPLAUSIBLE, REASONS, UNPLACED
from nvtxmoe_analysis.checks.check import Check, JsonValue, failed, not_applicable, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 220
EXPORTS_ONLY = True

NAME = "operations_placed"


def check(results: RunMetrics) -> Check:
    """All GPU work is placed. Otherwise the check has the reasons and their GPU time; ``coverage`` has the classes.

    Operations with impossible times are not among them: see ``operation_times``.
    """
    coverage = pl.concat([report.coverage for report in results.reports])
    unplaced = (
        coverage.filter(pl.col("class") == UNPLACED)
        .group_by("reason")
        .agg(pl.col("operations").sum(), pl.col("time_ns").sum())
        .sort(["time_ns", "reason"], descending=[True, False])
    )
    total = int(coverage.filter(pl.col("class") != IMPLAUSIBLE)["operations"].sum())
    lost = int(unplaced["operations"].sum())
    reasons: dict[str, JsonValue] = {REASONS[r]: {"operations": n, "time_ns": t} for r, n, t in unplaced.rows()}
    calls = sum(report.repeated_calls for report in results.reports)
    evidence: dict[str, JsonValue] = {
        "operations": total,
        "unplaced": lost,
        "reasons": reasons,
        "repeated_calls": calls,
    }
    if lost:
        listed = ", ".join(f"{REASONS[r]} {n:,}" for r, n, _ in unplaced.rows())
        return failed(NAME, f"{lost:,} of {total:,} GPU operations are unplaced: {listed}.", **evidence)
    if not total:
        return not_applicable(NAME, "No GPU operation in the capture.", **evidence)
    return passed(NAME, f"All {number(total, 'GPU operation')} have their place.", **evidence)
