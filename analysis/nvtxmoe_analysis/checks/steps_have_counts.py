"""Every step has the counts of every layer."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.checks.model import Check, failed, not_applicable, passed
from nvtxmoe_analysis.facts import ReportFacts
from nvtxmoe_analysis.results import Results

NAME = "steps_have_counts"


def check(results: Results) -> Check:
    """For each step with tokens, each layer of its rank has a moe.counts."""
    cells, examples, missing = 0, [], 0
    for report in results.reports:
        wanted, absent = _absent(report)
        cells += wanted
        missing += len(absent)
        examples += [f"rank {r} step {s} layer {n}" for r, s, n in absent.head(3).rows()]
    if missing:
        return failed(
            NAME,
            f"{missing:,} of {cells:,} (rank, step, layer) without counts, the first {examples[0]}.",
            cells=cells,
            missing=missing,
            examples=list(examples[:3]),
        )
    if not cells:
        return not_applicable(NAME, "No step whose layers are known.", cells=0, missing=0)
    return passed(NAME, f"All {cells:,} (rank, step, layer) have counts.", cells=cells, missing=0)


def _absent(report: ReportFacts) -> tuple[int, pl.DataFrame]:
    counted = report.events.counts.cells.select("pid", "step", "layer")
    told = [(pid, layer) for pid, meta in report.metas.items() for layer in meta.layers]
    seen = counted.select("pid", "layer").unique().rows()
    layers = pl.DataFrame(
        sorted(set(told) | {(int(p), int(n)) for p, n in seen}),
        schema={"pid": pl.Int64, "layer": pl.Int64},
        orient="row",
    )
    steps = report.steps.filter(pl.col("step").is_not_null() & (pl.col("num_tokens").fill_null(1) > 0))
    wanted = steps.select("pid", "rank", "step").unique().join(layers, on="pid", how="inner")
    absent = wanted.join(counted, on=["pid", "step", "layer"], how="anti")
    return len(wanted), absent.select("rank", "step", "layer").sort("rank", "step", "layer")
