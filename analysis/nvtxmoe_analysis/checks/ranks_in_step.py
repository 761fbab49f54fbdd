"""Ranks that run the same batches have the same steps."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, JsonValue, failed, not_applicable, passed
from nvtxmoe_analysis.checks.steps_consecutive import MOST_GAPS, listed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 106
EXPORTS_ONLY = False

NAME = "ranks_in_step"


def check(results: RunMetrics) -> Check:
    """Tensor- and pipeline-parallel ranks begin and end with the same step; so do data-parallel ranks of vLLM.

    A data-parallel rank without requests runs idle batches (moe.idle), which take numbers. In journals these are not
    recorded, so data-parallel ranks are compared by ``journals_agree`` there.
    """
    lost = results.lost_steps
    behind = [gap for gap in lost.gaps if not gap.inside]
    missing = sum(gap.steps for gap in behind)
    evidence: dict[str, JsonValue] = {"ranks_compared": lost.compared, "missing": missing}
    if behind:
        shared = (
            f" Steps {lost.shared[0]:,} to {lost.shared[1]:,} are on all ranks (--steps "
            f"{lost.shared[0]}:{lost.shared[1]})."
            if lost.shared
            else ""
        )
        return failed(
            NAME,
            f"{number(missing, 'step')} missing that other ranks have: {listed(behind)}.{shared}",
            **evidence,
            examples=[[gap.rank, gap.first, gap.last] for gap in behind[:MOST_GAPS]],
        )
    if not lost.compared:
        return not_applicable(NAME, "No ranks that run the same batches.", **evidence)
    return passed(NAME, f"{number(lost.compared, 'rank')} have the same first and last step.", **evidence)
