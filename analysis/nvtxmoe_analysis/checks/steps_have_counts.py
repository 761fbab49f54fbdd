"""Every step has the counts of every layer."""

from __future__ import annotations

from nvtxmoe_analysis.checks.model import Check, failed, not_applicable, passed
from nvtxmoe_analysis.results import Results
from nvtxmoe_analysis.wanted import first_cells, wanted_cells

NAME = "steps_have_counts"


def check(results: Results) -> Check:
    """For each step with tokens, each layer of its rank has a moe.counts."""
    cells, examples, missing = 0, [], 0
    for report in results.reports:
        wanted = wanted_cells(report)
        absent = wanted.join(report.events.counts.cells, on=["pid", "step", "layer"], how="anti")
        cells += len(wanted)
        missing += len(absent)
        examples += first_cells(absent)
    if missing:
        return failed(
            NAME,
            f"{missing:,} of {cells:,} (rank, step, layer) without counts, the first {examples[0]}.",
            cells=cells,
            missing=missing,
            examples=list(examples[:3]),
        )
    if not cells:
        return not_applicable(NAME, "No step with tokens whose layers are known.", cells=0, missing=0)
    return passed(NAME, f"All {cells:,} (rank, step, layer) have counts.", cells=cells, missing=0)
