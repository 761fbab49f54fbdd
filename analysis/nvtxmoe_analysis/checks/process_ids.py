"""Each process id, and each correlation id within a process, stands for one thing."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, JsonValue, not_applicable, passed, warned
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.events.process_lives import process_name
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 25
EXPORTS_ONLY = False

NAME = "process_ids"


def check(results: RunMetrics) -> Check:
    """No process id was used again within a report, and no correlation id within a process. A warning only.

    Processes of one id are told apart by their moe.meta marks, calls of one correlation id by time: an operation
    belongs to the last call before it.
    """
    processes, reused = 0, []
    for report in results.reports:
        processes += len(report.metas)
        reused += [f"{process_name(pid)} of {report.source.name}" for pid in sorted(report.events.lives.begins_ns)]
    repeated = sum(report.repeated_calls for report in results.reports)
    listed: list[JsonValue] = [*reused]
    evidence: dict[str, JsonValue] = {
        "processes": processes,
        "used_again": listed,
        "repeated_correlation_ids": repeated,
    }
    problems = []
    if reused:
        problems.append(
            f"Several processes had one id, one after the other ({', '.join(reused)}): their moe.meta marks tell them "
            "apart."
        )
    if repeated:
        problems.append(
            f"{number(repeated, 'CUDA call')} {'repeats' if repeated == 1 else 'repeat'} a correlation id of an "
            "earlier call of the process: each operation counts to the last such call before it."
        )
    if problems:
        return warned(NAME, " ".join(problems), **evidence)
    if not processes:
        return not_applicable(NAME, "No moe.meta.", **evidence)
    return passed(NAME, "No process id and no correlation id was used again.", **evidence)
