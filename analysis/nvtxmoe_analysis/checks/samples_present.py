"""Steps that are to be sampled have their sampled tokens."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.checks.check import Check, failed, not_applicable, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.events.meta import Meta
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.facts.expected_cells import first_cells
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 142
EXPORTS_ONLY = False

NAME = "samples_present"


def check(results: RunMetrics) -> Check:
    """moe.meta has sample_every: each counted cell of such a step has a moe.topk of as many tokens.

    Not judged: a process whose moe.meta does not ask for moe.topk, and one whose journal has no end.
    """
    sampled = missing = 0
    examples: list[str] = []
    for report in results.reports:
        for pid, meta in report.metas.items():
            cells, absent = _absent(report, pid, meta)
            sampled += cells
            missing += len(absent)
            examples += first_cells(absent)
    if missing:
        return failed(
            NAME,
            f"{missing:,} of {sampled:,} (rank, step, layer) that sample_every of moe.meta selects lack sampled tokens "
            f"(moe.topk), the first {examples[0]}.",
            cells=sampled,
            missing=missing,
        )
    if not sampled:
        return not_applicable(NAME, "No step is to be sampled.", cells=0, missing=0)
    return passed(NAME, f"All {number(sampled, 'sampled cell')} have their tokens.", cells=sampled, missing=0)


def _absent(report: CaptureFacts, pid: int, meta: Meta) -> tuple[int, pl.DataFrame]:
    every = meta.raw.get("sample_every")
    journal = report.events.journals.get(pid)
    counts = report.events.counts.cells.filter(pid=pid)
    if type(every) is not int or every <= 0 or not meta.emits("topk") or (journal is not None and not journal.ended):
        return 0, counts.clear()
    cells = counts.filter(pl.col("step") % every == 0, pl.col("num_tokens") > 0)
    cells = cells.unique(["step", "layer"], keep="first", maintain_order=True)
    sampled = report.events.topk.runs.filter(pid=pid).group_by("step", "layer").agg(sampled=pl.col("tokens").sum())
    both = cells.join(sampled, on=["step", "layer"], how="left", maintain_order="left")
    return len(cells), both.filter(pl.col("sampled").fill_null(0) < pl.col("num_tokens"))
