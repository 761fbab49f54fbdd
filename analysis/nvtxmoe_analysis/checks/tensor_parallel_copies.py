"""Ranks that see the same tokens counted the same."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, failed, not_applicable, passed
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics
from nvtxmoe_analysis.run.routing import combine

ORDER = 150
EXPORTS_ONLY = False

NAME = "tensor_parallel_copies"


def check(results: RunMetrics) -> Check:
    """Counts of the ranks of a tensor-parallel group are equal, cell by cell."""
    agreement = results.routing.agreement
    if results.selection.active:
        agreement = combine(
            [r.events.counts for r in results.reports],
            [r.topk for r in results.reports],
            [r.metas for r in results.reports],
        ).agreement
    evidence = {"compared": agreement.compared, "differing": agreement.differing}
    if agreement.example is not None:
        first, other, step, layer = agreement.example
        return failed(
            NAME,
            f"{agreement.differing:,} of {agreement.compared:,} copies differ, the first between ranks {first} and "
            f"{other} at step {step} layer {layer}. The lowest rank's counts are used.",
            **evidence,
        )
    if not agreement.compared:
        return not_applicable(NAME, "No tensor-parallel copies.", **evidence)
    return passed(NAME, f"All {agreement.compared:,} copies are equal; each counts once.", **evidence)
