"""CUDA graphs were traced node by node."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.checks.check import Check, failed, not_applicable, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 170
EXPORTS_ONLY = True

NAME = "graph_tracing"


def check(results: RunMetrics) -> Check:
    """Graph launches in steps gave kernels, not one record a graph."""
    launches = sum(report.launches.graphs for report in results.reports)
    records = sum(int(report.coverage.filter(pl.col("kind") == 3)["operations"].sum()) for report in results.reports)
    nodes = sum(report.graph_rows for report in results.reports)
    evidence = {"graph_launches": launches, "whole_graph_records": records, "node_rows": nodes}
    if records:
        return failed(
            NAME,
            f"{records:,} CUDA graphs were recorded as a whole, without their kernels: no layer can be told. Capture "
            "with --cuda-graph-trace=node.",
            **evidence,
        )
    if launches and not nodes:
        return failed(
            NAME,
            f"{number(launches, 'graph launch', 'graph launches')} but no graph node was recorded: the capture began "
            "after the graphs were made, or traced no nodes.",
            **evidence,
        )
    if not launches:
        return not_applicable(NAME, "No CUDA graph was launched in a step.", **evidence)
    return passed(NAME, f"{number(launches, 'graph launch', 'graph launches')}, traced by node.", **evidence)
