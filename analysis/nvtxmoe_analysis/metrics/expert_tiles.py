"""Expert tiles: how many blocks of rows a fused MoE kernel works on.

The launch grid does not tell: it is one-dimensional and frozen in CUDA graphs. moe.meta may tell a layer's block_m.
Where it does not, the default of vLLM's Triton kernel stands in, labelled so. That default is what vLLM takes for
16-bit weights, and for fp8 with one scale a tensor, where it has no tuned configuration for the shape and the card
(vLLM 0.20 to 0.33, model_executor/layers/fused_moe/fused_moe.py, get_default_config): 16 rows for up to 32 tokens, 32
for up to 96, 64 for up to 512, else 128. Tuned configurations, other weights and other kernels have other sizes.

Small batches are not sorted by expert (same file, _prepare_expert_assignment): without an expert map, where tokens x
top-k x 4 is at most the number of experts, each assignment has a tile of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.core.arrays import Ints
from nvtxmoe_analysis.core.parallel import CHUNK, ordered_map
from nvtxmoe_analysis.events.meta import Meta
from nvtxmoe_analysis.events.tables import CountTable

#: (tokens up to, block_m) of the default, and block_m of more tokens.
DEFAULT_BLOCKS = ((32, 16), (96, 32), (512, 64))
LARGEST_BLOCK = 128
#: A batch is not sorted if its assignments times this number are at most the number of experts.
SPARSITY_FACTOR = 4
FROM_META, DEFAULT = "moe.meta", "default"


def block_sizes(cells: pl.DataFrame, metas: Mapping[int, Meta]) -> pl.DataFrame:
    """Return ``block_m``, ``block_m_source`` and ``rows_per_tile`` of each cell.

    ``rows_per_tile`` is the most assignments of an expert in one tile: ``block_m``, or 1 where the batch is not sorted.

    Parameters:
        cells: ``pid``, ``layer``, ``num_tokens``, ``num_experts``, ``top_k``.
    """
    known = [
        (pid, number, layer.block_m)
        for pid, meta in metas.items()
        for number, layer in meta.layers.items()
        if layer.block_m
    ]
    blocks = pl.DataFrame(known, schema={"pid": pl.Int64, "layer": pl.Int64, "told": pl.Int64}, orient="row")
    default = pl.lit(LARGEST_BLOCK, pl.Int64)
    for tokens, block in reversed(DEFAULT_BLOCKS):
        default = pl.when(pl.col("num_tokens") <= tokens).then(pl.lit(block, pl.Int64)).otherwise(default)
    block_m = pl.coalesce("told", default).alias("block_m")
    source = pl.when(pl.col("told").is_null()).then(pl.lit(DEFAULT)).otherwise(pl.lit(FROM_META))
    single = _unsorted(metas) & pl.col("told").is_null()
    return cells.join(blocks, on=["pid", "layer"], how="left", maintain_order="left").select(
        block_m,
        source.alias("block_m_source"),
        pl.when(single).then(pl.lit(1, pl.Int64)).otherwise(block_m).alias("rows_per_tile"),
    )


def _unsorted(metas: Mapping[int, Meta]) -> pl.Expr:
    """Return whether the kernel does not sort a cell's assignments, because they are few."""
    without_map = [pid for pid, meta in metas.items() if _without_expert_map(meta)]
    few = pl.col("num_tokens") * pl.col("top_k") * SPARSITY_FACTOR <= pl.col("num_experts")
    return (few & pl.col("pid").is_in(without_map)).fill_null(False)


def _without_expert_map(meta: Meta) -> bool:
    """Return whether the process holds all experts: vLLM maps experts only with expert parallelism."""
    ep_size = meta.raw.get("ep_size")
    return (meta.world_size if ep_size is None else ep_size) == 1


def count_tiles(counts: CountTable, block_m: Ints) -> Ints:
    """sum over experts of ceil(count / block_m), a number per cell: int64 [cells]."""

    def chunk(first: int) -> Ints:
        rows = slice(first, first + CHUNK)
        return tiles(counts.matrix[rows], block_m[rows])

    return np.concatenate([np.zeros(0, dtype=np.int64), *ordered_map(chunk, range(0, len(counts), CHUNK))])


def tiles(block: npt.NDArray[np.integer[Any]], block_m: Ints) -> Ints:
    """The same of some rows: int64 [rows]."""
    largest = int(block.max(initial=0)) + int(block_m.max(initial=1))
    wide = block.astype(np.int32 if largest < 1 << 31 else np.int64)
    wide += (block_m - 1).astype(wide.dtype)[:, None]
    shift = np.log2(block_m).astype(wide.dtype)
    if np.array_equal(1 << shift, block_m):  # shifting is much faster than dividing
        wide >>= shift[:, None]
    else:
        wide //= block_m.astype(wide.dtype)[:, None]
    total: Ints = wide.sum(axis=1, dtype=np.int64)
    return total
