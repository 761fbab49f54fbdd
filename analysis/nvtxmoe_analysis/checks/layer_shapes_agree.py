"""moe.meta and the counts have the same number of experts and the same top_k."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.checks.check import Check, failed, not_applicable, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.events.meta import Meta
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

ORDER = 42
EXPORTS_ONLY = False

NAME = "layer_shapes_agree"


def check(results: RunMetrics) -> Check:
    """For each (rank, layer), num_experts and top_k of moe.meta are those of every moe.counts (moe.physical)."""
    compared = 0
    wrong: list[str] = []
    for report in results.reports:
        for event, table in (("moe.counts", report.events.counts), ("moe.physical", report.events.physical)):
            shapes = table.cells.select("pid", "layer", "num_experts", "top_k").unique().sort(pl.all())
            for pid, layer, experts, top_k in shapes.iter_rows():
                meta = report.metas.get(pid)
                if meta is None or layer not in meta.layers:
                    continue
                compared += 1
                shape = _shape(meta, layer, physical=event == "moe.physical")
                if shape != (experts, top_k):
                    wrong.append(
                        f"layer {layer} of rank {meta.rank} has {shape[0]} experts, top-{shape[1]}, in moe.meta and "
                        f"{experts} experts, top-{top_k}, in {event}"
                    )
    if wrong:
        shapes_wrong = number(len(wrong), "shape")
        return failed(
            NAME, f"{shapes_wrong} of {compared:,} differ, the first: {wrong[0]}.", compared=compared, wrong=len(wrong)
        )
    if not compared:
        return not_applicable(NAME, "No counts of a layer that moe.meta contains.", compared=0, wrong=0)
    return passed(NAME, "Counts have the shapes that moe.meta contains.", compared=compared, wrong=0)


def _shape(meta: Meta, layer: int, *, physical: bool) -> tuple[int, int]:
    layer_meta = meta.layers[layer]
    return (
        layer_meta.num_physical if physical and layer_meta.num_physical else layer_meta.num_experts
    ), layer_meta.top_k
