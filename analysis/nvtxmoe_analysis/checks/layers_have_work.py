"""Every layer of a step with tokens has GPU work."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.attribution.placed import IMPLAUSIBLE, UNPLACED
from nvtxmoe_analysis.checks.check import Check, failed, not_applicable, passed
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.facts.expected_cells import first_cells, wanted_cells
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 190
EXPORTS_ONLY = True

NAME = "layers_have_work"


def check(results: RunMetrics) -> Check:
    """GPU work was placed in each layer of each step that has tokens and launches, all of them with their work.

    A layer with tokens does not run without a kernel. Where its zeros stand in the tables, its ranges were not open
    when the work was launched or its graph captured, and its time counts as outside layers.
    """
    cells, idle, examples = 0, 0, []
    for report in results.reports:
        wanted = _wanted(report)
        bare = wanted.join(report.worked, on=["pid", "step", "layer"], how="anti")
        cells += len(wanted)
        idle += len(bare)
        examples += first_cells(bare)
    if idle:
        return failed(
            NAME,
            f"{idle:,} of {cells:,} (rank, step, layer) with tokens have no GPU work, the first {examples[0]}: was the "
            "layer's range open when it was launched, or its graph captured?",
            cells=cells,
            without_work=idle,
            examples=list(examples[:3]),
        )
    if not cells:
        return not_applicable(NAME, "No step with tokens and all of its GPU work.", cells=0, without_work=0)
    return passed(NAME, f"All {cells:,} (rank, step, layer) have GPU work.", cells=cells, without_work=0)


def _wanted(report: CaptureFacts) -> pl.DataFrame:
    """Of the cells of a whole capture those that lack nothing else: see operations_placed,
    operation_times and launches_have_work."""
    cells = wanted_cells(report.events, report.steps)
    if report.coverage["class"].is_in([UNPLACED, IMPLAUSIBLE]).any():
        return cells.clear()
    whole = report.launches.by_step.group_by("pid", "step").agg(pl.col("whole").all())
    return cells.join(whole.filter("whole"), on=["pid", "step"], how="semi")
