"""Every layer of a step with tokens has GPU work, and its experts have some."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.attribution.placed import IMPLAUSIBLE, UNPLACED
from nvtxmoe_analysis.checks.check import Check, failed, not_applicable, passed
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.facts.expected_cells import expected_cells, first_cells
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 190
EXPORTS_ONLY = True

NAME = "layers_have_work"


def check(results: RunMetrics) -> Check:
    """GPU work was placed in each layer of each step that has tokens and launches, all of them with their work.

    A layer with tokens does not run without a kernel. Where its zeros stand in the tables, its ranges were not open
    when the work was launched or its graph captured, and its time counts as outside layers. Nor do its experts: where
    some steps of a layer have kernels of the phase ``experts``, those without have lost theirs.
    """
    cells, idle, examples = 0, 0, []
    without_experts = []
    for report in results.reports:
        expected = _cells_with_work(report)
        without_experts.append(_without_experts(report, expected))
        bare = expected.join(report.worked, on=["pid", "step", "layer"], how="anti")
        cells += len(expected)
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
    gaps = pl.concat(without_experts) if without_experts else pl.DataFrame()
    if len(gaps):
        return failed(
            NAME,
            f"{len(gaps):,} of {cells:,} (rank, step, layer) with tokens have GPU work but no kernel of their "
            f"experts, which other steps of the same layer have, the first {first_cells(gaps)[0]}. Capture again.",
            cells=cells,
            without_work=0,
            without_experts=len(gaps),
            examples=list(first_cells(gaps)[:3]),
        )
    if not cells:
        return not_applicable(NAME, "No step with tokens and all of its GPU work.", cells=0, without_work=0)
    return passed(NAME, f"All {cells:,} (rank, step, layer) have GPU work.", cells=cells, without_work=0)


def _without_experts(report: CaptureFacts, expected: pl.DataFrame) -> pl.DataFrame:
    """Return the cells with GPU work but none of the phase ``experts``, of layers that have some in other steps.

    A rank that shares experts with others may get no token for its own: there such cells count only where they are
    more than half of a layer's.
    """
    layer = ["pid", "layer"]
    worked = expected.join(report.worked.select(*layer, "step", "experts_ns"), on=[*layer, "step"], how="inner")
    bare = pl.col("experts_ns") == 0
    alone = [pid for pid, meta in report.metas.items() if int(meta.raw.get("ep_size") or 1) == 1]
    max_share = pl.when(pl.col("pid").is_in(alone)).then(0.0).otherwise(0.5)
    share = bare.mean().over(layer)
    return worked.filter(bare & (share < 1) & (share > max_share)).select(expected.columns)


def _cells_with_work(report: CaptureFacts) -> pl.DataFrame:
    """Of the cells of a whole capture those that lack nothing else: see operations_placed,
    operation_times and launches_have_work."""
    cells = expected_cells(report.events, report.steps)
    if report.coverage["class"].is_in([UNPLACED, IMPLAUSIBLE]).any():
        return cells.clear()
    complete_steps = report.launches.by_step.group_by("pid", "step").agg(pl.col("whole").all())
    return cells.join(complete_steps.filter("whole"), on=["pid", "step"], how="semi")
