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
        Column("step_kind", TEXT),
        Column("tokens_from", INTEGER, "null: all batch sizes"),
        Column("tokens_to", INTEGER, "a power of two"),
        Column("rows", INTEGER, "of moe_roofline"),
        Column("rows_timed", INTEGER, "whose matmul_ns is known"),
        Column("rows_known", INTEGER, "whose roofline_pct is known"),
        Column("matmul_ns", INTEGER),
        Column("experts_ns", INTEGER),
        Column("padding_pct", FLOAT),
        Column("block_m_source", TEXT, "mixed: of several sources"),
        Column("weight_gb_per_s", FLOAT),
        Column("gb_per_s", FLOAT),
        Column("tflop_per_s", FLOAT),
        Column("weight_mbu_pct", FLOAT),
        Column("mbu_pct", FLOAT),
        Column("mfu_pct", FLOAT),
        Column("flop_per_byte", FLOAT),
        Column("limit", TEXT, "memory or compute, of the sums"),
        Column("roofline_pct", FLOAT),
    ),
    note="rates and shares are of sums over the rows in which both of their parts are known",
)


def build(results: RunMetrics) -> pl.DataFrame:
    """One row per kind of step and batch size, batch sizes grouped by powers of two."""
    from nvtxmoe_analysis.metrics.roofline.summary import summary  # noqa: PLC0415  see registry

    return summary(results.roofline)
