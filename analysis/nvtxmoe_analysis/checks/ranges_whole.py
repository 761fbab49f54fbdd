"""No layer or phase range is missing in a step."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, JsonValue, failed, not_applicable, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 214
EXPORTS_ONLY = True

NAME = "ranges_whole"


def check(results: RunMetrics) -> Check:
    """Each eager step has as many ranges of every layer, and each layer as many of every phase (``facts.range_gaps``).

    GPU work that was launched where a range is missing counts for the step, or for the layer as a whole.
    """
    gaps = [report.range_gaps for report in results.reports]
    layers, phases, bare = (sum(getattr(gap, name) for gap in gaps) for name in ("layers", "phases", "bare_phases"))
    evidence: dict[str, JsonValue] = {"layers": layers, "phases": phases, "bare_phases": bare}
    texts = []
    if layers:
        texts.append(f"{number(layers, 'layer range')} missing in steps whose other layers have theirs")
    if phases:
        texts.append(f"{number(phases, 'phase range')} missing in layers that have theirs in other steps")
    if bare:
        texts.append(f"{number(bare, 'phase range')} without the range of the layer around")
    if texts:
        return failed(
            NAME, f"{'; '.join(texts)}: work launched there counts outside the layer or phase.".capitalize(), **evidence
        )
    if not any(gap.seen for gap in gaps):
        return not_applicable(NAME, "No NVTX range of a step, layer or phase.", **evidence)
    return passed(NAME, "Every step has the ranges of its layers and phases.", **evidence)
