"""The payload bytes reached the export."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, failed, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 50
EXPORTS_ONLY = True

NAME = "blobs_present"


def check(results: RunMetrics) -> Check:
    """No event that carries a payload stands there without one."""
    bare = {r.source.name: r.events.problems["blobs_missing"] for r in results.reports}
    missing = sum(bare.values())
    if missing:
        where = ", ".join(name for name, count in bare.items() if count)
        # Where some payloads are there, the option was given.
        every = any(r.events.problems["blobs_missing"] and r.events.encoding == "none" for r in results.reports)
        remedy = (
            " Export the report again with `nsys export --type sqlite --include-blobs=true` (nsys 2023.4 does not "
            "know the option)."
        )
        return failed(
            NAME, f"{number(missing, 'event')} of {where} without payload.{remedy if every else ''}", missing=missing
        )
    return passed(NAME, "Every payload is in the export.", missing=0)
