"""Every process that captured anything says who it is."""

from __future__ import annotations

from collections.abc import Sequence

from nvtxmoe_analysis.checks.check import Check, failed, not_applicable, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.events.process_lives import process_name
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 20
EXPORTS_ONLY = False

NAME = "meta_present"


def check(results: RunMetrics) -> Check:
    """moe.meta is there for each process with steps or counts."""
    speaking = 0
    silent: list[str] = []
    complete = True
    for report in results.reports:
        pids = set(report.steps["pid"].to_list()) | set(report.events.counts.cells["pid"].to_list())
        speaking += len(pids)
        mute = sorted(pids - set(report.metas))
        silent += [_named(report, pid, [*pids, *report.metas]) for pid in mute]
        complete &= not mute or not (report.events.problems["blobs_missing"] or report.events.damaged)
    if silent:
        why = " The capture began after the process announced itself." if complete else " Payloads are missing."
        return failed(
            NAME,
            f"No moe.meta from {', '.join(silent)}: its ranks, layers and parallel groups are unknown."
            f"{'' if results.direct else why}",
            processes=speaking,
            without_meta=len(silent),
        )
    if not speaking:
        return not_applicable(NAME, "No process with steps or counts.", processes=0)
    themselves = "itself" if speaking == 1 else "themselves"
    return passed(NAME, f"{number(speaking, 'process', 'processes')} announced {themselves}.", processes=speaking)


def _named(report: CaptureFacts, pid: int, pids: Sequence[int]) -> str:
    file = report.events.journals.get(pid)
    return f"{process_name(pid, pids)} of {report.source.name}" if file is None else file.path.name
