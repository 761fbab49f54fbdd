"""The payload bytes reached the export, and can be read."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, failed, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.events.binary_payloads import REMEDY
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 50
EXPORTS_ONLY = True

NAME = "blobs_present"


def check(results: RunMetrics) -> Check:
    """Every event that carries a payload has one, and none is damaged."""
    damaged = [text for report in results.reports for text in report.events.damaged]
    bare = {r.source.name: r.events.problems["blobs_missing"] for r in results.reports}
    missing = sum(bare.values())
    if damaged:
        more = f" and {len(damaged) - 1:,} more" if len(damaged) > 1 else ""
        bare_too = f" {number(missing, 'event')} without payload." if missing else ""
        return failed(
            NAME,
            f"{number(len(damaged), 'payload')} can't be read, and the results lack what they said "
            f"({damaged[0]}{more})."
            f"{bare_too} {REMEDY}.",
            missing=missing,
            damaged=len(damaged),
        )
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
