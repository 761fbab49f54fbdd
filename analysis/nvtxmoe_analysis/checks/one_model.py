"""All processes say that they serve the same model."""

from __future__ import annotations

from nvtxmoe_analysis.checks.check import Check, not_applicable, passed, warned
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 40
EXPORTS_ONLY = False

NAME = "one_model"


def check(results: RunMetrics) -> Check:
    """All processes name one model. A warning only: each process may have a copy. Different layers are refused."""
    metas = [meta for report in results.reports for meta in report.metas.values()]
    names = sorted({str(meta.raw["model"]) for meta in metas if meta.raw.get("model") is not None})
    if not names:
        return not_applicable(NAME, "No moe.meta tells the model.", models=[])
    if len(names) > 1:
        return warned(
            NAME,
            f"Processes name {number(len(names), 'model')}, with layers of the same shapes: {', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''}. Are they of one run? NVTXMOE_RUN_ID would tell.",
            models=list(names),
        )
    return passed(NAME, f"All serve {names[0]}.", models=list(names))
