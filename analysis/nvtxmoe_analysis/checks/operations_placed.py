"""Every GPU operation has its place."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.checks.model import Check, Figure, failed, not_applicable, number, passed
from nvtxmoe_analysis.places import REASONS, UNPLACED
from nvtxmoe_analysis.results import Results

NAME = "operations_placed"


def check(results: Results) -> Check:
    """Nothing is unplaced; the reasons and their GPU time where something is. See ``coverage`` for the classes."""
    coverage = pl.concat([report.coverage for report in results.reports])
    unplaced = (
        coverage.filter(pl.col("class") == UNPLACED)
        .group_by("reason")
        .agg(pl.col("operations").sum(), pl.col("time_ns").sum())
        .sort(["time_ns", "reason"], descending=[True, False])
    )
    total = int(coverage["operations"].sum())
    lost = int(unplaced["operations"].sum())
    reasons: dict[str, Figure] = {REASONS[r]: {"operations": n, "time_ns": t} for r, n, t in unplaced.rows()}
    calls = sum(report.repeated_calls for report in results.reports)
    figures: dict[str, Figure] = {"operations": total, "unplaced": lost, "reasons": reasons, "repeated_calls": calls}
    if lost:
        listed = ", ".join(f"{REASONS[r]} {n:,}" for r, n, _ in unplaced.rows())
        return failed(NAME, f"{lost:,} of {total:,} GPU operations are unplaced: {listed}.", **figures)
    if not total:
        return not_applicable(NAME, "No GPU operation in the capture.", **figures)
    return passed(NAME, f"All {number(total, 'GPU operation')} have their place.", **figures)
