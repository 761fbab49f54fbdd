"""The key (rank, step, layer) is unique."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, failed, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 100
EXPORTS_ONLY = False

NAME = "unique_keys"


def check(results: RunMetrics) -> Check:
    """No rank sent two ranges for a step, or two counts for a (step, layer)."""
    steps = counts = 0
    for report in results.reports:
        numbered = report.steps.drop_nulls("step")
        steps += len(numbered) - numbered.select("pid", "step").n_unique()
        cells = report.events.counts.cells
        counts += len(cells) - cells.select("pid", "step", "layer").n_unique()
    if steps or counts:
        return failed(
            NAME,
            f"{number(steps, 'step')} and {number(counts, 'count')} repeat a number that their rank has used: repeated "
            "steps are added up, of repeated counts the first counts.",
            repeated_steps=steps,
            repeated_counts=counts,
        )
    return passed(NAME, "Each (rank, step, layer) occurs once.", repeated_steps=0, repeated_counts=0)
