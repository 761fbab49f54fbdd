"""Every process that captured anything says who it is."""

from __future__ import annotations

from nvtxmoe_analysis.checks.model import Check, failed, number, passed
from nvtxmoe_analysis.results import Results

NAME = "meta_present"


def check(results: Results) -> Check:
    """moe.meta is there for each process with steps or counts."""
    speaking = 0
    silent: list[str] = []
    for report in results.reports:
        pids = set(report.steps["pid"].to_list()) | set(report.events.counts.cells["pid"].to_list())
        speaking += len(pids)
        silent += [f"process {pid} of {report.source.name}" for pid in sorted(pids - set(report.metas))]
    if silent:
        return failed(
            NAME,
            f"No moe.meta from {', '.join(silent)}: its ranks, layers and parallel groups are unknown. "
            "The capture began after the process announced itself.",
            processes=speaking,
            without_meta=len(silent),
        )
    return passed(NAME, f"{number(speaking, 'process', 'processes')} announced itself.", processes=speaking)
