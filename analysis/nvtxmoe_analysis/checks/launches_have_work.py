"""Every launch inside a step has its GPU work, to the last step."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.checks.model import Check, Figure, failed, not_applicable, number, passed
from nvtxmoe_analysis.results import Results

NAME = "launches_have_work"


def check(results: Results) -> Check:
    """Launches are judged, not completion times: kernels may well end after their step's range.

    A graph launch is partial when another launch of the same graph gave more operations.
    """
    frames = [
        report.launches.select("rank", "step", "name", "start", "is_graph", "has_work", "partial").with_columns(
            report=pl.lit(report.source.name)
        )
        for report in results.reports
    ]
    launches = pl.concat(frames)
    lost = launches.filter(~pl.col("has_work") | pl.col("partial"))
    figures: dict[str, Figure] = {
        "launches": len(launches),
        "graph_launches": int(launches["is_graph"].sum()),
        "without_work": int((~launches["has_work"]).sum()),
        "partial_graphs": int(launches["partial"].sum()),
    }
    if launches.is_empty():
        return not_applicable(NAME, "No launch inside a step was recorded.", **figures)
    if lost.is_empty():
        return passed(
            NAME, f"All {number(len(launches), 'launch', 'launches')} in steps have their GPU work.", **figures
        )
    first = lost.sort("report", "start").row(0, named=True)
    figures["first"] = {k: first[k] for k in ("report", "rank", "step", "name", "start")}
    figures["steps_affected"] = lost.select("rank", "step").n_unique()
    return failed(
        NAME,
        f"{len(lost):,} of {len(launches):,} launches in steps have lost GPU work, from rank {first['rank']} step "
        f"{first['step']} on ({first['name']}): the GPU half of the capture is not whole.",
        **figures,
    )
