"""moe_summary.json: each layer in ten numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from nvtxmoe_analysis.outputs.spec import Document

if TYPE_CHECKING:
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

DOCUMENT = Document(
    name="summary",
    stem="moe_summary",
    order=10,
    meaning="each layer in ten numbers",
)


def document(results: RunMetrics) -> Mapping[str, Mapping[str, int | float | None]]:
    """``{"layer_0": {...}, ...}`` and nothing else at top level.

    ``load_balance_ratio`` is the largest over the smallest count of all experts, null where one got nothing;
    ``std_dev_activations`` is the population's.
    """
    cells = results.routing.counts.cells
    last = cells.unique("layer", keep="last")
    top_k = dict(zip(last["layer"].to_list(), last["top_k"].to_list(), strict=True))
    return {
        f"layer_{layer}": {
            "num_experts": len(total),
            "top_k": top_k[layer],
            "total_activations": int(total.sum()),
            "unique_experts_activated": int(np.count_nonzero(total)),
            "activation_coverage_pct": 100.0 * np.count_nonzero(total) / len(total),
            "mean_activations_per_expert": float(total.mean()),
            "std_dev_activations": float(total.std()),
            "min_activations": int(total.min()),
            "max_activations": int(total.max()),
            "load_balance_ratio": float(total.max() / total.min()) if total.min() > 0 else None,
        }
        for layer, total in results.totals.items()
    }
