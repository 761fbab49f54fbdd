"""Every launch inside a step has its GPU work, and every step its launches, to the last one."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.checks.check import Check, JsonValue, failed, not_applicable, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.facts.expected_cells import with_tokens
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 180
EXPORTS_ONLY = True

NAME = "launches_have_work"


def check(results: RunMetrics) -> Check:
    """Every launch in a step has its GPU work. Kernels may end after their step's range.

    A graph launch is partial when another launch of the same graph gave more operations. A step with tokens in
    which nothing was launched has lost its calls together with their work.
    """
    launches = sum(report.launches.number for report in results.reports)
    silent = pl.concat([_silent_steps(report) for report in results.reports])
    lost = pl.concat([report.launches.lost.select(_source(report), pl.all()) for report in results.reports])
    evidence: dict[str, JsonValue] = {
        "launches": launches,
        "graph_launches": sum(report.launches.graphs for report in results.reports),
        "without_work": int((~lost["has_work"]).sum()),
        "partial_graphs": int(lost["partial"].sum()),
        "steps_without_launch": len(silent),
    }
    gone = pl.concat([lost, silent], how="diagonal")
    if gone.is_empty() and not launches:
        return not_applicable(NAME, "No launch inside a step was recorded.", **evidence)
    if gone.is_empty():
        return passed(NAME, f"All {number(launches, 'launch', 'launches')} in steps have their GPU work.", **evidence)
    first = gone.sort("report", "start").row(0, named=True)
    evidence["first"] = {k: first[k] for k in ("report", "rank", "step", "name", "start")}
    evidence["steps_affected"] = gone.select("report", "step_row").n_unique()
    problems = []
    if len(lost):
        problems.append(f"{len(lost):,} of {launches:,} launches in steps have lost GPU work")
    if len(silent):
        problems.append(f"{number(len(silent), 'step')} with tokens {'has' if len(silent) == 1 else 'have'} no launch")
    return failed(
        NAME, f"{' and '.join(problems)}, {_beginning(first)}: the GPU half of the capture is not whole.", **evidence
    )


def _beginning(first: dict[str, object]) -> str:
    step = f"rank {first['rank']} step {first['step']}" if first["step"] is not None else f"{first['start']} ns"
    return f"from {step} on" + (f" ({first['name']})" if first["name"] else "")


def _source(report: CaptureFacts) -> pl.Expr:
    return pl.lit(str(report.source)).alias("report")


def _silent_steps(report: CaptureFacts) -> pl.DataFrame:
    """Steps with tokens but without launches. Without any CUDA call see cuda_tracing."""
    steps = report.steps.with_row_index("step_row").with_columns(pl.col("step_row").cast(pl.Int32))
    if not report.runtime_calls:
        steps = steps.clear()
    silent = with_tokens(steps).join(report.launches.by_step, on="step_row", how="anti")
    return silent.select(_source(report), "rank", "step", "step_row", "start")
