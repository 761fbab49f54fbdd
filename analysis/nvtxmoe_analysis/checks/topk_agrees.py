"""Sampled tokens give the counts of their step again."""

from __future__ import annotations

import numpy as np
import polars as pl

from nvtxmoe_analysis.checks.check import Check, failed, not_applicable, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 140
EXPORTS_ONLY = False

NAME = "topk_agrees"


def check(results: RunMetrics) -> Check:
    """On sampled steps, moe.topk counted by expert equals moe.counts."""
    compared = differing = 0
    for report in results.reports:
        cells, wrong = _compare(report)
        compared += cells
        differing += wrong
    if not compared:
        return not_applicable(NAME, "No step has both sampled tokens and counts.", compared=0, differing=0)
    if differing:
        return failed(
            NAME,
            f"In {differing:,} of {compared:,} sampled (rank, step, layer) the tokens' experts are not those counted.",
            compared=compared,
            differing=differing,
        )
    return passed(NAME, f"{number(compared, 'sampled cell')} agree with their counts.", compared=compared, differing=0)


def _compare(report: CaptureFacts) -> tuple[int, int]:
    topk, counts = report.events.topk, report.events.counts
    key = ["pid", "step", "layer"]
    cells = counts.cells.select(key).with_row_index("cell").join(topk.runs, on=key, how="semi", maintain_order="left")
    cells = cells.unique(key, keep="first", maintain_order=True)
    cell = topk.runs.join(cells, on=key, how="left", maintain_order="left")["cell"].cast(pl.Int64).fill_null(-1)
    known, of_run = np.unique(cell.to_numpy(), return_inverse=True)
    place = np.repeat(of_run, topk.runs["tokens"].to_numpy())
    if not len(known) or not len(counts):
        return 0, 0
    width = counts.matrix.shape[1] + 1  # the last column: experts that the counts do not have
    real = topk.experts >= 0
    slots = (place[:, None] * width + np.minimum(topk.experts, width - 1))[real]
    tally = np.bincount(slots, minlength=len(known) * width).reshape(len(known), width)
    with_counts = known >= 0
    stated = np.zeros((int(with_counts.sum()), width), dtype=np.int64)
    stated[:, :-1] = counts.matrix[known[with_counts]]
    return len(stated), int(np.any(tally[with_counts] != stated, axis=1).sum())
