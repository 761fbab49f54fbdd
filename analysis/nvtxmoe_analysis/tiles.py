"""Expert tiles: how many blocks of rows a fused MoE kernel works on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from nvtxmoe_analysis.events import Meta
from nvtxmoe_analysis.payload_tables import CountTable
from nvtxmoe_analysis.routing import CHUNK


def count_tiles(counts: CountTable, metas: Mapping[int, Meta]) -> pl.DataFrame:
    """``block_m`` and ``expert_tiles`` = sum over experts of ceil(count / block_m), a row a cell.

    block_m is what moe.meta says of the layer; where it says nothing both are null. The launch grid does not tell:
    it is one-dimensional and frozen in CUDA graphs.
    """
    known = [
        (pid, number, layer.block_m)
        for pid, meta in metas.items()
        for number, layer in meta.layers.items()
        if layer.block_m
    ]
    blocks = pl.DataFrame(known, schema={"pid": pl.Int64, "layer": pl.Int64, "block_m": pl.Int64}, orient="row")
    block = counts.cells.join(blocks, on=["pid", "layer"], how="left", maintain_order="left")["block_m"]
    if block.null_count() == len(block):
        return pl.DataFrame({"block_m": block, "expert_tiles": block})
    size = block.fill_null(1).to_numpy()
    tiles = np.zeros(len(counts), dtype=np.int64)
    for at in range(0, len(counts), CHUNK):
        rows = slice(at, at + CHUNK)
        tiles[rows] = (-(-counts.matrix[rows].astype(np.int64) // size[rows, None])).sum(axis=1)
    return pl.DataFrame({"block_m": block, "expert_tiles": tiles}).with_columns(
        expert_tiles=pl.when(pl.col("block_m").is_not_null()).then("expert_tiles")
    )
