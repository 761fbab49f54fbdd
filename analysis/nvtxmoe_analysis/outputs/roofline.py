"""moe_roofline: what the experts hit need, and how fast their kernels were, one row per (rank, step, layer)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from nvtxmoe_analysis.outputs.spec import FLOAT, INTEGER, TEXT, Column, Document, Table

if TYPE_CHECKING:
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

TABLE = Table(
    name="roofline",
    stem="moe_roofline",
    order=132,
    meaning="bytes and operations that the experts hit need, and how fast their kernels were, by (rank, step, layer)",
    gpu=True,
    columns=(
        Column("rank", INTEGER, "global rank"),
        Column("step", INTEGER, "number of the step"),
        Column("layer_idx", INTEGER, "vLLM's number of the MoE layer"),
        Column("step_kind", TEXT, "prefill, decode, mixed, none; null if unknown"),
        Column("num_tokens", INTEGER, "scheduled tokens of the rank in the step"),
        Column("routed_rows", INTEGER, "assignments to the rank's experts"),
        Column("local_active_experts", INTEGER, "the rank's experts that got a token"),
        Column("padded_rows", INTEGER, "rows that tiles add"),
        Column("padding_pct", FLOAT, "share of padded rows in all rows of the tiles"),
        Column("block_m", INTEGER, "rows of a tile"),
        Column("block_m_source", TEXT, "moe.meta, kernel name, default"),
        Column("weight_bytes", INTEGER, "weights of the active experts, as stored, with scales"),
        Column("activation_bytes", INTEGER, "inputs and outputs of both matrix products"),
        Column("needed_bytes", INTEGER, "weight_bytes + activation_bytes"),
        Column("routed_flop", INTEGER, "operations for the routed rows"),
        Column("padded_flop", INTEGER, "operations for the padded rows"),
        Column("matmul_ns", INTEGER, "kernels that multiply by experts' weights"),
        Column("experts_ns", INTEGER, "all kernels of the phase experts, without collectives"),
        Column("weight_gb_per_s", FLOAT, "weight_bytes / matmul_ns"),
        Column("gb_per_s", FLOAT, "needed_bytes / matmul_ns"),
        Column("tflop_per_s", FLOAT, "routed_flop / matmul_ns"),
        Column("experts_gb_per_s", FLOAT, "needed_bytes / experts_ns"),
        Column("experts_tflop_per_s", FLOAT, "routed_flop / experts_ns"),
        Column("weight_mbu_pct", FLOAT, "weight_gb_per_s in percent of the GPU's bandwidth"),
        Column("mbu_pct", FLOAT, "gb_per_s in percent of the GPU's bandwidth"),
        Column("mfu_pct", FLOAT, "tflop_per_s in percent of the GPU's dense throughput"),
        Column("flop_per_byte", FLOAT, "routed_flop / needed_bytes"),
        Column("limit", TEXT, "memory or compute: which takes longer at the GPU's peaks"),
        Column("roofline_ns", FLOAT, "least time at the GPU's peaks: the longer of the two"),
        Column("roofline_pct", FLOAT, "roofline_ns in percent of matmul_ns"),
    ),
    whole=("layer_idx",),
    key=("rank", "step", "layer_idx"),
    unnumbered=True,
    note="null if a size, a time or a peak is unknown; see [roofline](../explanation/roofline.md)",
)

DOCUMENT = Document(
    name="roofline_document",
    stem="moe_roofline",
    order=32,
    meaning="the GPUs' peaks with their sources, the sizes of experts, and what is unknown",
    gpu=True,
)


def build(results: RunMetrics) -> pl.DataFrame:
    """One row per (rank, step, layer) captured."""
    return results.roofline.select(*TABLE.types)


def document(results: RunMetrics) -> dict[str, Any]:
    """``gpus``: peaks and their source by name; ``layers``: sizes of experts, layers that are alike together;
    ``unknown``: what is missing in how many rows."""
    from nvtxmoe_analysis.metrics.roofline.describe import gpus, layer_sizes  # noqa: PLC0415  see registry
    from nvtxmoe_analysis.metrics.roofline.summary import unknown  # noqa: PLC0415  see registry

    metas = [meta for report in results.reports for meta in report.metas.values()]
    return {
        "gpus": gpus(metas, results.peaks),
        "layers": layer_sizes(metas),
        "rows": len(results.roofline),
        "unknown": unknown(results.roofline),
    }
