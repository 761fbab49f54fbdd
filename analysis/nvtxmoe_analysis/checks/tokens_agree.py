"""Counts cover the tokens that their step scheduled."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.checks.check import Check, not_applicable, passed, warned
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 130
EXPORTS_ONLY = False

NAME = "tokens_agree"


def check(results: RunMetrics) -> Check:
    """num_tokens of counts and of their step. They may differ where ranks share out or gather tokens."""
    compared = differing = 0
    for report in results.reports:
        steps = report.steps.drop_nulls(["step", "num_tokens"]).unique(["pid", "step"], keep="first")
        both = report.events.counts.cells.join(
            steps.select("pid", "step", pl.col("num_tokens").alias("scheduled")), on=["pid", "step"], how="inner"
        )
        compared += len(both)
        differing += int((both["num_tokens"] != both["scheduled"]).sum())
    if not compared:
        return not_applicable(NAME, "No counts whose step was captured.", compared=0, differing=0)
    if differing:
        return warned(
            NAME,
            f"{differing:,} of {compared:,} counts cover other tokens than their step scheduled, as under sequence "
            "or data parallelism.",
            compared=compared,
            differing=differing,
        )
    return passed(NAME, "Counts cover just the scheduled tokens.", compared=compared, differing=0)
