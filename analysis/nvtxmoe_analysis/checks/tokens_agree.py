"""Counts cover the tokens that their step scheduled."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.checks.check import Check, failed, not_applicable, passed, warned
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 130
EXPORTS_ONLY = False

NAME = "tokens_agree"


def check(results: RunMetrics) -> Check:
    """num_tokens of counts is that of their step. They may differ if ranks share out or gather tokens.

    They can't differ on a rank that works alone, and no step that scheduled no token has counts of any.
    """
    compared = differing = impossible = unscheduled = 0
    for report in results.reports:
        steps = report.steps.drop_nulls(["step", "num_tokens"]).unique(["pid", "step"], keep="first")
        both = report.events.counts.cells.join(
            steps.select("pid", "step", pl.col("num_tokens").alias("scheduled")), on=["pid", "step"], how="inner"
        )
        compared += len(both)
        other = both.filter(pl.col("num_tokens") != pl.col("scheduled"))
        differing += len(other)
        unscheduled += len(other.filter(pl.col("scheduled") <= 0))
        alone = [pid for pid, meta in report.metas.items() if meta.world_size == 1 and len(report.metas) == 1]
        impossible += len(other.filter((pl.col("scheduled") <= 0) | pl.col("pid").is_in(alone)))
    if not compared:
        return not_applicable(NAME, "No counts whose step was captured.", compared=0, differing=0)
    if impossible:
        why = "while their step scheduled none" if unscheduled else "on a rank that works alone"
        return failed(
            NAME,
            f"{impossible:,} of {compared:,} counts cover other tokens than their step scheduled, {why}: one of the "
            "two numbers is wrong.",
            compared=compared,
            differing=differing,
        )
    if differing:
        return warned(
            NAME,
            f"{differing:,} of {compared:,} counts cover other tokens than their step scheduled, as under sequence "
            "or data parallelism.",
            compared=compared,
            differing=differing,
        )
    return passed(NAME, "Counts cover just the scheduled tokens.", compared=compared, differing=0)
