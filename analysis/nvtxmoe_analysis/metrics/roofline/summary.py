"""The roofline by kind of step and batch size: sums over rows, never means of rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from nvtxmoe_analysis.metrics.roofline.rows import COMPUTE, MEMORY

SCHEMA = {
    "step_kind": pl.String,
    "tokens_from": pl.Int64,
    "tokens_to": pl.Int64,
    "rows": pl.Int64,
    "rows_timed": pl.Int64,
    "rows_known": pl.Int64,
    "matmul_ns": pl.Int64,
    "experts_ns": pl.Int64,
    "padding_pct": pl.Float64,
    "block_m_source": pl.String,
    "weight_gb_per_s": pl.Float64,
    "gb_per_s": pl.Float64,
    "tflop_per_s": pl.Float64,
    "weight_mbu_pct": pl.Float64,
    "mbu_pct": pl.Float64,
    "mfu_pct": pl.Float64,
    "flop_per_byte": pl.Float64,
    "limit": pl.String,
    "roofline_pct": pl.Float64,
}

#: What a number of the roofline needs, by the column that is null without it.
UNKNOWN: Mapping[str, str] = {
    "matmul_ns": "no kernel of the phase experts is known to multiply by experts' weights",
    "routed_rows": "no counts, or which experts the rank holds is unknown",
    "padded_rows": "rows of a tile: moe.meta has no block_m, and the kernel is not one whose tiles are known",
    "weight_bytes": "expert_bytes is not in moe.meta, or the counts are unknown",
    "routed_flop": "sizes of the experts are not in moe.meta (hidden_size, intermediate_size, gated)",
    "activation_bytes": "number types of the experts are not in moe.meta (activation_dtype, input_dtype)",
    "mbu_pct": "bytes, time or the GPU's bandwidth",
    "mfu_pct": "operations, time or the GPU's throughput for this number type",
}


def summary(rows: pl.DataFrame) -> pl.DataFrame:
    """Return SCHEMA by kind of step and batch size, and with null sizes by kind of step alone.

    Batch sizes are grouped by powers of two: 1, 2, 3 to 4, 5 to 8 ... tokens of the rank's own batch.

    Parameters:
        rows: see ``rows.roofline``.
    """
    keyed = rows.filter(pl.col("step_kind").is_not_null() & pl.col("num_tokens").is_not_null())
    tokens = keyed["num_tokens"].to_numpy()
    upto = np.where(tokens > 0, 1 << np.frexp(np.maximum(tokens, 1) - 1)[1].astype(np.int64), 0)
    keyed = keyed.with_columns(
        tokens_from=pl.Series(np.where(upto < 3, upto, upto // 2 + 1)), tokens_to=pl.Series(upto)
    )
    by = ["step_kind", "tokens_from", "tokens_to"]
    all_sizes = keyed.with_columns(pl.lit(None, pl.Int64).alias(name) for name in by[1:])
    parts = [_sums(part, by) for part in (all_sizes, keyed)]
    return pl.concat(parts).select(*SCHEMA).cast(SCHEMA).sort(by, nulls_last=False)  # type: ignore[arg-type]


def unknown(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Return what is unknown of how many rows: ``what`` (the column), ``rows``, ``meaning``."""
    counts = {name: int(rows[name].null_count()) for name in UNKNOWN}
    return [{"what": name, "rows": count, "meaning": UNKNOWN[name]} for name, count in counts.items() if count]


def _sums(rows: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    time = pl.col("matmul_ns")
    both = pl.col("limit").is_not_null()
    memory_ns, compute_ns = (pl.col(name).filter(both).sum() for name in ("memory_ns", "compute_ns"))
    source = pl.col("block_m_source").drop_nulls()
    return (
        rows.lazy()
        .group_by(by)
        .agg(
            rows=pl.len(),
            rows_timed=time.count(),
            rows_known=pl.col("roofline_pct").count(),
            matmul_ns=time.sum(),
            experts_ns=pl.col("experts_ns").sum(),
            padding_pct=100.0 * _ratio("padded_rows", pl.col("padded_rows") + pl.col("routed_rows")),
            block_m_source=pl.when(source.n_unique() == 1)
            .then(source.first())
            .when(source.len() > 0)
            .then(pl.lit("mixed")),
            weight_gb_per_s=_ratio("weight_bytes", time),
            gb_per_s=_ratio("needed_bytes", time),
            tflop_per_s=_ratio("routed_flop", time) / 1e3,
            weight_mbu_pct=100.0 * _ratio("weight_memory_ns", time),
            mbu_pct=100.0 * _ratio("memory_ns", time),
            mfu_pct=100.0 * _ratio("compute_ns", time),
            flop_per_byte=_ratio("routed_flop", pl.col("needed_bytes")),
            limit=pl.when(pl.col("limit").count() == 0)
            .then(None)
            .when(memory_ns >= compute_ns)
            .then(pl.lit(MEMORY))
            .otherwise(pl.lit(COMPUTE)),
            roofline_pct=100.0 * _ratio("roofline_ns", time),
        )
        .collect()
    )


def _ratio(part: str, denominator: pl.Expr) -> pl.Expr:
    """Return the sum of one over the sum of the other, over the rows in which both are known; null without any."""
    both = pl.col(part).is_not_null() & denominator.is_not_null()
    total = denominator.filter(both).sum()
    return pl.col(part).filter(both).sum() / pl.when(total > 0).then(total)
