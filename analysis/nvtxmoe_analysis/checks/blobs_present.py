"""The payload bytes reached the export."""

from __future__ import annotations

from nvtxmoe_analysis.checks.model import Check, failed, passed
from nvtxmoe_analysis.results import Results

NAME = "blobs_present"


def check(results: Results) -> Check:
    """No event that carries a payload stands there without one."""
    bare = {r.source.name: r.events.problems["blobs_missing"] for r in results.reports}
    missing = sum(bare.values())
    if missing:
        where = ", ".join(name for name, count in bare.items() if count)
        return failed(
            NAME,
            f"{missing:,} events of {where} have lost their payload. Export the report again with "
            "`nsys export --type sqlite --include-blobs=true` (nsys 2023.4 does not know the option).",
            missing=missing,
        )
    return passed(NAME, "Every payload is in the export.", missing=0)
