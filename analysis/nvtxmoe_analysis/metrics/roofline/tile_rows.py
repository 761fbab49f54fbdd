"""Rows that the experts' kernels work on, padding included, as far as the size of a tile is known."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.facts.layer_rows import KEY
from nvtxmoe_analysis.metrics.beside import beside
from nvtxmoe_analysis.metrics.expert_tiles import DEFAULT, FROM_META
from nvtxmoe_analysis.metrics.local_load import local_load
from nvtxmoe_analysis.run.data_parallel import Sharing

#: Where the rows of a tile come from; beside those of ``expert_tiles``.
KERNEL_NAME = "kernel name"
COLUMNS = {"named_block_m": pl.Int64, "named_tiles": pl.Int64}


def named_tiles(report: CaptureFacts, sharing: Sharing | None) -> pl.DataFrame:
    """Return the tile's rows in the kernels' names, and the tiles of that size, for each row of ``report.layers``:
    COLUMNS, null where no name contains a size."""
    named = report.expert_matmuls.drop_nulls("named_block_m")
    if named.is_empty():
        return (
            pl.select(
                pl.lit(None, dtype).repeat_by(len(report.layers)).explode().alias(name)
                for name, dtype in COLUMNS.items()
            )
            if len(report.layers)
            else pl.DataFrame(schema=COLUMNS)
        )
    cells = report.counts.cells
    keys = report.step_work.select("step_row", "pid", "step")
    blocks = named.select("step_row", "layer", "named_block_m").join(keys, on="step_row", how="inner")
    of_cells = beside(cells, blocks.drop("step_row"), ["pid", "step", "layer"])["named_block_m"]
    shared = None if sharing is None else sharing.of(cells, report.metas)
    load = local_load(report.counts, report.events.physical, report.metas, of_cells.fill_null(1), shared)
    tiles = pl.when(of_cells.is_not_null()).then(load["local_expert_tiles"])
    tiles_of_cells = cells.select(*KEY, of_cells.alias("named_block_m"), tiles.alias("named_tiles"))
    return beside(
        report.layers, tiles_of_cells.unique(list(KEY), keep="first", maintain_order=True), KEY, nulls_equal=True
    )


def with_tile_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """Add ``tile_rows`` (of all tiles), ``block_m`` and ``block_m_source``, null where the size of a tile is unknown.

    moe.meta counts first, then the kernels' names, then vLLM's default, which is for its Triton kernel alone.

    Parameters:
        rows: ``block_m``, ``block_m_source`` and ``local_expert_tiles`` of moe_layer_correlation, ``triton`` of
            ``expert_matmuls``, and COLUMNS.
    """
    declared = pl.col("block_m_source") == FROM_META
    named = pl.col("named_block_m").is_not_null()
    default = pl.col("triton").fill_null(False)
    block = pl.when(declared).then("block_m").when(named).then("named_block_m").when(default).then("block_m")
    tiles = (
        pl.when(declared)
        .then("local_expert_tiles")
        .when(named)
        .then("named_tiles")
        .when(default)
        .then("local_expert_tiles")
    )
    source = (
        pl.when(declared)
        .then(pl.lit(FROM_META))
        .when(named)
        .then(pl.lit(KERNEL_NAME))
        .when(default & pl.col("block_m").is_not_null())
        .then(pl.lit(DEFAULT))
    )
    return rows.with_columns(tile_rows=tiles * block, block_m=block, block_m_source=source)
