"""CUDA activity was traced."""

from __future__ import annotations

from nvtxmoe_analysis.checks.model import Check, failed, number, passed
from nvtxmoe_analysis.results import Results

NAME = "cuda_tracing"


def check(results: Results) -> Check:
    """Every input has runtime calls and GPU operations."""
    calls = sum(report.runtime_calls for report in results.reports)
    operations = sum(report.operations for report in results.reports)
    figures = {"runtime_calls": calls, "gpu_operations": operations}
    bare = [r.source.name for r in results.reports if not r.runtime_calls or not r.operations]
    if bare:
        lost = "CUDA calls but no GPU operation" if calls and not operations else "no CUDA activity"
        return failed(
            NAME,
            f"{', '.join(bare)}: {lost}. The tables of GPU time are empty; capture with "
            "`nsys profile -t cuda,nvtx --cuda-graph-trace=node`.",
            **figures,
        )
    return passed(NAME, f"{number(operations, 'GPU operation')} from {number(calls, 'CUDA call')}.", **figures)
