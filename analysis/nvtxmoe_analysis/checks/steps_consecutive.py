"""No step number of a rank is missing between two others."""

from __future__ import annotations

from collections.abc import Sequence

from nvtxmoe_analysis.checks.check import Check, JsonValue, failed, not_applicable, passed, warned
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.events.process_lives import process_name
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics
from nvtxmoe_analysis.run.lost_steps import Gap

ORDER = 104
EXPORTS_ONLY = False

NAME = "steps_consecutive"
#: Gaps that a message contains.
MOST_GAPS = 3


def check(results: RunMetrics) -> Check:
    """Every batch of a process, idle batches (moe.idle) too, has the next number.

    A capture that begins with a later step than 0 on all ranks has a capture window: a warning only. Steps outside of
    the windows of a running server (``nvtxmoe window``) are cut on purpose. In journals idle batches of data-parallel
    ranks are not recorded, so their numbers are not judged.
    """
    lost = results.lost_steps
    holes = [gap for gap in lost.gaps if gap.inside]
    missing = sum(gap.steps for gap in holes)
    evidence: dict[str, JsonValue] = {
        "missing": missing,
        "gaps": len(holes),
        "begins_at": lost.begins_at,
        "not_judged": list(lost.idle_unknown),
    }
    if lost.windows:
        evidence["windows"] = [list(window) for window in lost.windows]
    if holes:
        return failed(
            NAME,
            f"{number(missing, 'step')} missing between captured steps: {listed(holes)}.",
            **evidence,
            examples=[[gap.rank, gap.first, gap.last] for gap in holes[:MOST_GAPS]],
        )
    if not lost.processes or len(lost.idle_unknown) >= lost.processes:
        return not_applicable(NAME, "No rank whose batches are all numbered in the input.", **evidence)
    if lost.begins_at is not None:
        return warned(
            NAME,
            f"The capture begins with step {lost.begins_at:,} on all ranks: steps before it are outside the capture "
            "window, or lost.",
            **evidence,
        )
    where = f" inside of {number(len(lost.windows), 'window')}" if lost.windows else ""
    return passed(NAME, f"No step number is missing{where}.", **evidence)


def listed(gaps: Sequence[Gap]) -> str:
    """The first gaps as text: ``steps 10 to 19 of rank 0``."""
    texts = []
    for gap in gaps[:MOST_GAPS]:
        steps = f"step {gap.first:,}" if gap.first == gap.last else f"steps {gap.first:,} to {gap.last:,}"
        texts.append(f"{steps} of {process_name(gap.pid) if gap.rank is None else f'rank {gap.rank}'}")
    return ", ".join(texts) + (", ..." if len(gaps) > MOST_GAPS else "")
