"""CUDA activity was traced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nvtxmoe_analysis.checks.check import Check, failed, passed
from nvtxmoe_analysis.core.text import number

if TYPE_CHECKING:
    from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 160
EXPORTS_ONLY = True

NAME = "cuda_tracing"


def check(results: RunMetrics) -> Check:
    """Every input has runtime calls and GPU operations, in tables that are read."""
    calls = sum(report.runtime_calls for report in results.reports)
    operations = sum(report.operations for report in results.reports)
    evidence = {"runtime_calls": calls, "gpu_operations": operations}
    bare = [f"{r.source.name}: {lost}" for r in results.reports if (lost := _lost(r))]
    others = sorted({name for report in results.reports for name in report.other_tables})
    was_asked = all(report.cuda_asked for report in results.reports if _lost(report))
    if bare:
        return failed(NAME, f"{'; '.join(bare)}. GPU time is unknown. {remedy(others, was_asked)}", **evidence)
    if others:
        return failed(NAME, f"A part of the GPU time is unknown. {remedy(others, was_asked)}", **evidence)
    return passed(NAME, f"{number(operations, 'GPU operation')} from {number(calls, 'CUDA call')}.", **evidence)


def _lost(report: CaptureFacts) -> str:
    """What a report lacks, empty when it has calls and operations."""
    if report.operations:
        return "" if report.runtime_calls else "GPU operations but no CUDA call"
    return "CUDA calls but no GPU operation" if report.runtime_calls else "no CUDA activity"


def remedy(others: Sequence[str], cuda_asked: bool | None) -> str:
    """The sentence on what to do about missing CUDA activity.

    Parameters:
        others: tables that are in the place of those that this version reads.
        cuda_asked: whether the capture was asked to trace CUDA; None if that is unknown.
    """
    if others:
        return (
            f"The export has {', '.join(others)}, which this nvtxmoe does not read: export the report with nsys 2023.4 "
            "to 2025.3, or use a newer nvtxmoe."
        )
    if cuda_asked:
        return (
            "The capture was asked to trace CUDA: look into nsys's messages (CUPTI may be in use by another profiler, "
            "or the driver may refuse it), and whether the capture window contains steps."
        )
    return "Capture with `nsys profile -t cuda,nvtx --cuda-graph-trace=node`."
