"""The GPU's clock fits the clock of the steps."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.checks.check import Check, JsonValue, failed, not_applicable, passed
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 226
EXPORTS_ONLY = True

NAME = "gpu_clock"
#: Nanoseconds by which a layer's GPU work may begin before its step: the GPU's clock is converted to the host's.
MOST_BEFORE_NS = 1_000_000
#: Nanoseconds after the beginning of its step within which a layer's GPU work begins: an hour.
MOST_AFTER_NS = 3_600_000_000_000


def check(results: RunMetrics) -> Check:
    """GPU work of a layer begins after the step that launched it began, and within an hour."""
    cells = wrong = 0
    example = ""
    worst = 0
    for report in results.reports:
        distances = _distances(report)
        bad = distances.filter(~pl.col("after").is_between(-MOST_BEFORE_NS, MOST_AFTER_NS))
        cells += len(distances)
        wrong += len(bad)
        if len(bad) and not example:
            rank, step, layer, worst = bad.select("rank", "step", "layer", "after").row(0)
            place = f"{abs(worst) / 1e9:,.3f} s {'before' if worst < 0 else 'after'}"
            example = f"that of rank {rank} step {step} layer {layer} begins {place} its step"
    evidence: dict[str, JsonValue] = {"cells": cells, "wrong": wrong, "first_after_step_ns": worst}
    if wrong:
        return failed(
            NAME,
            f"In {wrong:,} of {cells:,} (rank, step, layer) the times of GPU work do not fit their step: {example}.",
            **evidence,
        )
    if not cells:
        return not_applicable(NAME, "No GPU work in a layer.", **evidence)
    return passed(NAME, "GPU work begins after the step that launched it.", **evidence)


def _distances(report: CaptureFacts) -> pl.DataFrame:
    """``rank``, ``step``, ``layer`` and ``after`` (ns from the step's start to its GPU work) of cells that worked."""
    steps = report.steps.with_row_index("step_row").select(pl.col("step_row").cast(pl.Int32), "start")
    worked = report.worked.filter(pl.col("step_row").is_not_null())
    return worked.join(steps, on="step_row", how="inner", maintain_order="left").select(
        "rank", "step", "layer", after=pl.col("gpu_start_ns") - pl.col("start")
    )
