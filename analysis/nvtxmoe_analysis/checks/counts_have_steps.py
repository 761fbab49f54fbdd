"""Every count belongs to a captured step."""

from __future__ import annotations

import numpy as np
import polars as pl

from nvtxmoe_analysis.checks.check import Check, failed, not_applicable, passed, warned
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.facts.expected_cells import MOST_IN_FLIGHT, first_cells
from nvtxmoe_analysis.facts.selection import without_step
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 112
EXPORTS_ONLY = False

NAME = "counts_have_steps"


def check(results: RunMetrics) -> Check:
    """No moe.counts and no moe.physical is of a step without moe.step. The tables leave such counts out.

    Counts of a process without any step are in the tables: there is nothing to compare them with.
    Counts arrive after their step, so at the beginning of a capture window there may be counts of the steps just before
    it: a warning only.
    """
    cells = lost = early = assignments = 0
    examples: list[str] = []
    for report in results.reports:
        for table in (report.events.counts, report.events.physical):
            alone = without_step(table.cells, report.steps)
            before = _before_window(report, table.cells.filter(alone)) if not report.direct else 0
            cells += len(table)
            stray = table.cells.filter(~pl.col("pid").is_in(report.steps["pid"].unique().to_list()))
            early += before
            lost += int(alone.sum()) - before + len(stray)
            if int(alone.sum()) > before or len(stray):
                examples += first_cells(pl.concat([table.cells.filter(alone), stray]))
            if table is report.events.counts:
                assignments += int(table.matrix[np.flatnonzero(alone.to_numpy())].sum(dtype=np.int64))
    evidence = {"counts": cells, "without_step": lost, "before_window": early, "assignments_left_out": assignments}
    left_out = f"{number(assignments, 'assignment')} left out of the tables."
    if lost:
        return failed(
            NAME,
            f"{lost:,} of {cells:,} counts belong to no captured step, the first {examples[0]}: {left_out}",
            **evidence,
        )
    if early:
        return warned(NAME, f"{number(early, 'count')} of steps before the capture window: {left_out}", **evidence)
    if not cells:
        return not_applicable(NAME, "No counts in the capture.", **evidence)
    return passed(NAME, "Every count belongs to a captured step.", **evidence)


def _before_window(report: CaptureFacts, cells: pl.DataFrame) -> int:
    """Number of counts of the last steps before a process's first step, if that is not step 0."""
    first = report.steps.drop_nulls("step").group_by("pid").agg(first=pl.col("step").min())
    distance = pl.col("first") - pl.col("step")
    return len(cells.join(first, on="pid").filter(distance.is_between(1, MOST_IN_FLIGHT), pl.col("first") > 0))
