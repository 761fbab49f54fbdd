"""Roofline and waterfall of a run that never was: see ``report_results.Made``."""

from __future__ import annotations

from typing import Any

import polars as pl


def roofline(cells: pl.DataFrame) -> pl.DataFrame:
    """Products take 20 us. Decode needs 4 operations a byte and reaches 1,200 GB/s, prefill 400 at 1,000."""
    prefill = pl.col("num_tokens") == 512
    rate = pl.when(prefill).then(1000.0).otherwise(1200.0)
    intensity = pl.when(prefill).then(400.0).otherwise(4.0)
    needed = (20_000 * rate).cast(pl.Int64)
    least = pl.max_horizontal(needed / 4800, needed * intensity / 989_500)
    return (
        cells
        .select("step", "layer_idx", "num_tokens", rank=pl.lit(0), matmul_ns=pl.lit(20_000))
        .with_columns(
            step_kind=pl.when(prefill).then(pl.lit("prefill")).otherwise(pl.lit("decode")),
            needed_bytes=needed, gb_per_s=rate, tflop_per_s=rate * intensity / 1e3, flop_per_byte=intensity,
            mbu_pct=100 * rate / 4800, mfu_pct=100 * rate * intensity / 989_500,
            limit=pl.when(prefill).then(pl.lit("compute")).otherwise(pl.lit("memory")),
            roofline_ns=least, roofline_pct=100 * least / 20_000,
        )
    )  # fmt: skip


def roofline_summary(cells: pl.DataFrame) -> pl.DataFrame:
    """By kind of step, and of prefill by two batch sizes, of which memory binds the smaller one."""
    of_all = roofline(cells).group_by("step_kind", "limit").agg(
        pl.col("matmul_ns").sum(),
        pl.col("gb_per_s", "tflop_per_s", "mbu_pct", "mfu_pct", "roofline_pct", "flop_per_byte").first(),
        rows=pl.len(),
    ).with_columns(
        weight_gb_per_s="gb_per_s", weight_mbu_pct="mbu_pct", padding_pct=pl.lit(62.5),
        block_m_source=pl.lit("default"), tokens_from=pl.lit(None, pl.Int64), tokens_to=pl.lit(None, pl.Int64),
    )  # fmt: skip
    prefill = of_all.filter(step_kind="prefill")
    sizes = [
        prefill.with_columns(pl.lit(limit).alias("limit"), tokens_from=pl.lit(first), tokens_to=pl.lit(last))
        for limit, first, last in (("memory", 129, 256), ("compute", 257, 512))
    ]
    return pl.concat([of_all.sort("step_kind"), *sizes], how="diagonal_relaxed")


def waterfall(steps_of_run: int) -> pl.DataFrame:
    """Of a step 10 us each, but 30 us of ``ideal``; further experts have 2 us to both sides."""
    bars = ("ideal", "further_experts", "padding", "rest", "other_work", "uneven_ranks", "waiting", "transfer")
    rows: list[dict[str, Any]] = []
    kinds = (("decode", steps_of_run * 9 // 10), ("prefill", steps_of_run // 10), (None, steps_of_run))
    of_steps = [(step, "decode" if step % 10 else "prefill", 1) for step in range(steps_of_run)]
    for step, kind, steps in [*((None, kind, steps) for kind, steps in kinds), *of_steps]:
        times = {bar: steps * (30_000 if bar == "ideal" else 10_000) for bar in bars}
        for bar, ns in {**times, "unequal_speed": None, "total": sum(times.values())}.items():
            off = 2_000 * steps if bar in ("ideal", "further_experts", "padding", "uneven_ranks") else None
            rows.append(
                {
                    "group": 0, "step": step, "step_kind": kind, "bar": bar, "time_ns": ns,
                    "low_ns": None if off is None or ns is None else ns - off,
                    "high_ns": None if off is None or ns is None else ns + off,
                    "how": None if ns is None else "estimated" if off else "measured",
                    "reason": "3 (step, layer), at least 20 needed" if ns is None and step is None else None,
                }
            )  # fmt: skip
    return pl.DataFrame(rows, infer_schema_length=None)


def roofline_document(gpu: str, rows: int) -> dict[str, Any]:
    """Everything is known."""
    gpus = [{"name": gpu, "ranks": [0], "gb_per_s": 4800.0, "source": "a data sheet"}]
    return {"gpus": gpus, "layers": [], "rows": rows, "unknown": []}
