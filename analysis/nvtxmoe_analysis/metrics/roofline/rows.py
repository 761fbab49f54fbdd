"""The roofline of each (rank, step, layer): what its experts need, and how fast their kernels were.

docs/explanation/roofline.md explains the columns.

The roofline model: S. Williams, A. Waterman and D. Patterson, "Roofline: An Insightful Visual Performance Model for
Multicore Architectures" (CACM 52(4), 2009). Work is at least bytes / bandwidth and at least operations / throughput.
"""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.metrics.roofline.tile_rows import with_tile_rows

MEMORY, COMPUTE = "memory", "compute"

#: Columns of :func:`roofline`.
COLUMNS = (
    *("rank", "step", "layer_idx", "step_kind", "num_tokens", "routed_rows", "local_active_experts", "padded_rows"),
    *("padding_pct", "block_m", "block_m_source", "weight_bytes", "activation_bytes", "needed_bytes", "routed_flop"),
    *("padded_flop", "matmul_ns", "experts_ns", "weight_gb_per_s", "gb_per_s", "tflop_per_s", "experts_gb_per_s"),
    *("experts_tflop_per_s", "weight_mbu_pct", "mbu_pct", "mfu_pct", "flop_per_byte", "limit", "roofline_ns"),
    "roofline_pct",
)
#: Further columns of :func:`roofline`: the least time that bytes and operations take at the GPU's peaks.
LEAST_TIMES = ("weight_memory_ns", "memory_ns", "compute_ns")
#: Columns of moe_layer_correlation that it is computed from.
NEEDED = (
    *("rank", "step", "layer_idx", "step_kind", "num_tokens", "local_activations", "local_active_experts", "block_m"),
    *("block_m_source", "local_expert_tiles", "weight_bytes", "experts_ns", "top_k", "local_experts"),
)


def with_work(correlation: pl.DataFrame, work: pl.DataFrame, sizes: pl.DataFrame) -> pl.DataFrame:
    """Return NEEDED with what the experts' kernels did and what their sizes are, in the order of the rows.

    ``experts_ns`` is then the phase's time without collectives, null where the phase has no kernel; ``matmul_ns`` is
    null without a matrix product that is known by name; ``tile_rows``, ``block_m`` and ``block_m_source``: see
    ``with_tile_rows``; ``routed_rows`` are the assignments to the rank's experts. ``weight_bytes`` is null where
    ``expert_bytes`` may be of biases alone: triton_kernels (their names contain a tile) hold weights in objects of
    their own, which captures from before the sizes were recorded did not count.

    Parameters:
        work: see ``work.expert_work``; sizes: see ``expert_sizes.expert_sizes``.
    """
    rows = pl.concat([correlation.select(NEEDED), work], how="horizontal")
    compute_ns = pl.col("experts_ns") - pl.col("experts_collective_ns")
    joined = rows.join(sizes, on=["rank", "layer_idx"], how="left", maintain_order="left")
    return with_tile_rows(joined).with_columns(
        experts_ns=pl.when(compute_ns > 0).then(compute_ns),
        routed_rows=pl.col("local_activations"),
        weight_bytes=pl.when(
            pl.col("weights_plausible").fill_null(True)
            & (pl.col("named_block_m").is_null() | pl.col("weights").is_not_null())
        ).then("weight_bytes"),
    )


def roofline(rows: pl.DataFrame) -> pl.DataFrame:
    """Return COLUMNS and LEAST_TIMES for each row of :func:`with_work`; null where a size, time or peak is unknown."""
    time = pl.when(pl.col("matmul_ns") > 0).then("matmul_ns")
    needed = pl.col("needed_bytes")
    return (
        rows.lazy()
        .with_columns(
            padded_rows=pl.col("tile_rows") - pl.col("routed_rows"),
            activation_bytes=pl.col("routed_rows") * pl.col("row_bits") // 8,
            routed_flop=2 * pl.col("routed_rows") * pl.col("weights"),
        )
        .with_columns(
            padding_pct=100.0 * pl.col("padded_rows") / pl.when(pl.col("tile_rows") > 0).then("tile_rows"),
            padded_flop=2 * pl.col("padded_rows") * pl.col("weights"),
            needed_bytes=pl.col("weight_bytes") + pl.col("activation_bytes"),
        )
        .with_columns(
            weight_gb_per_s=pl.col("weight_bytes") / time,
            gb_per_s=needed / time,
            tflop_per_s=pl.col("routed_flop") / time / 1e3,
            experts_gb_per_s=needed / pl.col("experts_ns"),
            experts_tflop_per_s=pl.col("routed_flop") / pl.col("experts_ns") / 1e3,
            flop_per_byte=pl.col("routed_flop") / pl.when(needed > 0).then(needed),
            weight_memory_ns=pl.col("weight_bytes") / pl.col("peak_gb_per_s"),
            memory_ns=needed / pl.col("peak_gb_per_s"),
            compute_ns=pl.col("routed_flop") / pl.col("peak_tflop_per_s") / 1e3,
        )
        .with_columns(
            weight_mbu_pct=100.0 * pl.col("weight_memory_ns") / time,
            mbu_pct=100.0 * pl.col("memory_ns") / time,
            mfu_pct=100.0 * pl.col("compute_ns") / time,
            limit=limit(),
            roofline_ns=_longest(),
        )
        .with_columns(roofline_pct=100.0 * pl.col("roofline_ns") / time)
        .select(*COLUMNS, *LEAST_TIMES)
        .collect()
    )


def limit() -> pl.Expr:
    """Return which limit binds, of ``memory_ns`` and ``compute_ns``; null where either is unknown or both are 0."""
    memory, compute = pl.col("memory_ns"), pl.col("compute_ns")
    by_memory = (memory >= compute) & (memory > 0)
    return pl.when(by_memory).then(pl.lit(MEMORY)).when(compute > memory).then(pl.lit(COMPUTE))


def _longest() -> pl.Expr:
    """Return the larger of ``memory_ns`` and ``compute_ns``; null where either is unknown."""
    memory, compute = pl.col("memory_ns"), pl.col("compute_ns")
    return pl.when(memory >= compute).then(memory).when(compute > memory).then(compute)
