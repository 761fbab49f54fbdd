"""moe_roofline_summary: the roofline by kind of step and batch size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from nvtxmoe_analysis.outputs.spec import FLOAT, INTEGER, TEXT, Column, Table

if TYPE_CHECKING:
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

TABLE = Table(
    name="roofline_summary",
    stem="moe_roofline_summary",
    order=134,
    meaning="the roofline by kind of step and batch size",
    gpu=True,
    columns=(
        Column("step_kind", TEXT, "prefill, decode, mixed, none; null if unknown"),
        Column("tokens_from", INTEGER, "smallest number of tokens in the group of batch sizes; null: all"),
        Column("tokens_to", INTEGER, "largest number of tokens in it; groups are powers of two"),
        Column("rows", INTEGER, "rows of moe_roofline"),
        Column("rows_timed", INTEGER, "rows whose matmul_ns is known"),
        Column("rows_known", INTEGER, "rows whose roofline_pct is known"),
        Column("matmul_ns", INTEGER, "sum over rows"),
        Column("experts_ns", INTEGER, "sum over rows"),
        Column("padding_pct", FLOAT, "share of padded rows"),
        Column("block_m_source", TEXT, "source of block_m; mixed: several"),
        Column("weight_gb_per_s", FLOAT, "weight bytes per time of the matrix products"),
        Column("gb_per_s", FLOAT, "needed bytes per time of the matrix products"),
        Column("tflop_per_s", FLOAT, "routed operations per time of the matrix products"),
        Column("weight_mbu_pct", FLOAT, "weight_gb_per_s in percent of the GPU's bandwidth"),
        Column("mbu_pct", FLOAT, "gb_per_s in percent of the GPU's bandwidth"),
        Column("mfu_pct", FLOAT, "tflop_per_s in percent of the GPU's dense throughput"),
        Column("flop_per_byte", FLOAT, "operations per needed byte"),
        Column("limit", TEXT, "memory or compute, of the sums"),
        Column("roofline_pct", FLOAT, "least time at the GPU's peaks in percent of the matrix products' time"),
    ),
    whole=("step_kind", "rows", "rows_timed", "rows_known", "matmul_ns", "experts_ns"),
    note="rates and shares are of sums over the rows in which both of their parts are known",
)


def build(results: RunMetrics) -> pl.DataFrame:
    """One row per kind of step and batch size, batch sizes grouped by powers of two."""
    from nvtxmoe_analysis.metrics.roofline.summary import summary  # noqa: PLC0415  see registry

    return summary(results.roofline)
