"""CUDA activity was traced."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, failed, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 160
EXPORTS_ONLY = True

NAME = "cuda_tracing"


def check(results: RunMetrics) -> Check:
    """Every input has runtime calls and GPU operations."""
    calls = sum(report.runtime_calls for report in results.reports)
    operations = sum(report.operations for report in results.reports)
    figures = {"runtime_calls": calls, "gpu_operations": operations}
    bare = [f"{r.source.name}: {lost}" for r in results.reports if (lost := _lost(r))]
    if bare:
        return failed(
            NAME,
            f"{'; '.join(bare)}. GPU time is missing; capture with "
            "`nsys profile -t cuda,nvtx --cuda-graph-trace=node`.",
            **figures,
        )
    return passed(NAME, f"{number(operations, 'GPU operation')} from {number(calls, 'CUDA call')}.", **figures)


def _lost(report: CaptureFacts) -> str:
    """What a report lacks, empty when it has calls and operations."""
    if report.operations:
        return "" if report.runtime_calls else "GPU operations but no CUDA call"
    return "CUDA calls but no GPU operation" if report.runtime_calls else "no CUDA activity"
