"""Calls, graph nodes and GPU operations are recorded in the order in which they happened."""

from __future__ import annotations

from collections import Counter

from nvtxmoe_analysis.checks.check import Check, JsonValue, failed, not_applicable, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 219
EXPORTS_ONLY = True

NAME = "records_in_order"
_NAMES = {"calls": "CUDA call", "nodes": "graph node", "operations": "GPU operation"}


def check(results: RunMetrics) -> Check:
    """No call, graph node or GPU operation is out of order (``attribution.order``).

    One that is belongs to another place or time, so the GPU time of some (rank, step, layer) is another one's. Each
    batch of rows is looked at on its own, so rows that changed places over a million rows are not seen.
    """
    disorders: Counter[str] = Counter()
    for report in results.reports:
        disorders.update({name: report.disordered[name] for name in _NAMES})
    evidence: dict[str, JsonValue] = {name: disorders[name] for name in _NAMES}
    if disorders.total():
        listed = ", ".join(number(disorders[name], text) for name, text in _NAMES.items() if disorders[name])
        return failed(
            NAME,
            f"Out of order: {listed}. Rows of the export were exchanged or moved in time, so GPU time may be counted "
            "for another step or layer.",
            **evidence,
        )
    if not any(report.operations for report in results.reports):
        return not_applicable(NAME, "No GPU operation in the capture.", **evidence)
    return passed(NAME, "CUDA calls, graph nodes and GPU operations are in order.", **evidence)
