"""The steps' numbers rise with time."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.checks.check import Check, failed, not_applicable, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 102
EXPORTS_ONLY = False

NAME = "steps_in_order"


def check(results: RunMetrics) -> Check:
    """No step of a rank has a lower number than the step before it.

    The order is that of the ranges' starts, in journals that of the records. Repeated numbers: see unique_keys.
    """
    numbered = falling = 0
    first = ""
    for report in results.reports:
        order = "row" if report.direct else "start"
        steps = report.steps.drop_nulls("step").sort("pid", order, maintain_order=True)
        steps = steps.with_columns(before=pl.col("step").shift(1).over("pid"))
        wrong = steps.filter(pl.col("step") < pl.col("before"))
        numbered += len(steps)
        falling += len(wrong)
        if len(wrong) and not first:
            row = wrong.row(0, named=True)
            first = f"step {row['step']} of rank {row['rank']} after step {row['before']}"
    if falling:
        times = number(falling, "time")
        return failed(NAME, f"Step numbers fall {times}, first {first}.", steps=numbered, falling=falling)
    if not numbered:
        return not_applicable(NAME, "No numbered step.", steps=0, falling=0)
    return passed(NAME, "Step numbers rise with time.", steps=numbered, falling=0)
