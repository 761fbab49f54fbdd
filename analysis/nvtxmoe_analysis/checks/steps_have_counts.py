"""Every step has the counts of every layer."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, JsonValue, failed, not_applicable, passed, warned
from nvtxmoe_analysis.checks.steps_consecutive import listed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.facts.expected_cells import counted_cells, counted_layers, first_cells
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 110
EXPORTS_ONLY = False

NAME = "steps_have_counts"
#: Characters of a reason from moe.meta that are shown.
MOST_REASON = 400


def check(results: RunMetrics) -> Check:
    """For each step with tokens, each layer of its rank has a moe.counts.

    Layers whose routing is hidden have none: see capture_healthy. Nor have, in a journal without its end, the last
    steps: see journals_whole. The cells of lost steps (steps_consecutive, ranks_in_step) are among those without.
    """
    cells, examples, missing, hidden = 0, [], 0, set()
    lost = lost_cells(results)
    for report in results.reports:
        expected = counted_cells(report.events, report.steps)
        absent = expected.join(report.events.counts.cells, on=["pid", "step", "layer"], how="anti")
        cells += len(expected)
        missing += len(absent)
        examples += first_cells(absent)
        hidden |= {layer for state in report.events.capture_states().values() for layer in state.hidden}
    cells, missing = cells + lost, missing + lost
    evidence: dict[str, JsonValue] = {"cells": cells, "missing": missing}
    if lost:
        evidence["of_lost_steps"] = lost
        examples += [f"in {listed(results.lost_steps.gaps)}"]
    if hidden:
        evidence["hidden_layers"] = len(hidden)
    if missing:
        return failed(
            NAME,
            f"{missing:,} of {cells:,} (rank, step, layer) without counts, the first {examples[0]}.",
            **evidence,
            examples=list(examples[:3]),
        )
    if not cells and hidden:
        return not_applicable(NAME, "The routing of every layer is hidden, see capture_healthy.", **evidence)
    if not cells:
        return _none(results, evidence)
    hidden_text = f", {number(len(hidden), 'hidden layer')} apart" if hidden else ""
    return passed(NAME, f"All {cells:,} (rank, step, layer) have counts{hidden_text}.", **evidence)


def lost_cells(results: RunMetrics) -> int:
    """(rank, step, layer) of lost steps: each layer that must have counts on that rank."""
    layers = {
        (position, pid): number
        for position, report in enumerate(results.reports)
        for pid, number in counted_layers(report.events).items()
    }
    return sum(gap.steps * layers.get((gap.report, gap.pid), 0) for gap in results.lost_steps.gaps)


def _none(results: RunMetrics, evidence: dict[str, JsonValue]) -> Check:
    """No counts were to be there: said, and a fault where nobody asked for that."""
    metas = [meta for report in results.reports for meta in report.metas.values()]
    scheduled = sum(int((report.steps["num_tokens"] > 0).sum()) for report in results.reports)
    if not metas or not scheduled:
        return not_applicable(NAME, "No step with tokens whose layers are known.", **evidence)
    if not any(meta.emits("counts") for meta in metas):
        return warned(NAME, "Counts were not asked for (NVTXMOE_EMIT): there are no activations.", **evidence)
    reason = next((text for meta in metas if isinstance(text := meta.raw.get("no_layers"), str)), None)
    why = " (NVTXMOE_LAYERS names none of the model's)" if reason is None else ": " + " ".join(reason.split())
    return failed(
        NAME, f"{number(scheduled, 'step')} with tokens, and no layer is recorded{why[:MOST_REASON]}.", **evidence
    )
