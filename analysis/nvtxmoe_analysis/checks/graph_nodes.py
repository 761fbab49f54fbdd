"""Replayed graph nodes lead to where they were created."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, failed, not_applicable, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 200
EXPORTS_ONLY = True

NAME = "graph_nodes"


def check(results: RunMetrics) -> Check:
    """Every replayed node leads, by however many clones, to an original created before the replay."""
    lost = sum(report.nodes_unresolved for report in results.reports)
    rows = sum(report.graph_rows for report in results.reports)
    if lost:
        return failed(
            NAME,
            f"{number(lost, 'graph node')} of replayed graphs lead to no creation: the capture must include the time "
            "when vLLM captures its graphs.",
            unresolved=lost,
            node_rows=rows,
        )
    if not rows:
        return not_applicable(NAME, "No CUDA graph node in the capture.", unresolved=0, node_rows=0)
    return passed(NAME, "Every replayed graph node leads to its creation.", unresolved=0, node_rows=rows)
