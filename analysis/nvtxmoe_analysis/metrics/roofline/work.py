"""What the experts' kernels of each (rank, step, layer) did: their time, their tiles, the tokens they worked on."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from nvtxmoe_analysis.core.parallel import ordered_map
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.facts.layer_rows import KEY
from nvtxmoe_analysis.metrics.beside import beside
from nvtxmoe_analysis.metrics.roofline.tile_rows import named_tiles
from nvtxmoe_analysis.run.data_parallel import Sharing

#: Columns of :func:`expert_work`.
COLUMNS = (
    *("matmul_count", "matmul_ns", "triton", "named_block_m", "named_tiles"),
    *("experts_collective_ns", "kernel_tokens"),
)


def expert_work(reports: Sequence[CaptureFacts], sharing: Sharing | None) -> list[pl.DataFrame]:
    """Return COLUMNS of each report, a row for every row of its layers, in their order.

    ``matmul_ns``, ``triton``, ``named_block_m``: see ``expert_matmuls``. ``experts_collective_ns``: of collectives in
    the phase ``experts``. ``kernel_tokens``: tokens whose rows the kernels got, of all data-parallel ranks that share
    the experts; null where unknown.
    """
    side_by_side = map if len(reports) == 1 else ordered_map
    return list(side_by_side(lambda report: _of_report(report, sharing), reports))


def _of_report(report: CaptureFacts, sharing: Sharing | None) -> pl.DataFrame:
    layers, cell = report.layers, ["step_row", "layer"]
    matmuls = beside(layers, report.expert_matmuls.drop("named_block_m"), cell)
    collectives = beside(layers, _collectives(report), cell).fill_null(0)
    tokens = beside(layers, _tokens(report, sharing), KEY, nulls_equal=True)
    return pl.concat([matmuls, named_tiles(report, sharing), collectives, tokens], how="horizontal").select(COLUMNS)


def _collectives(report: CaptureFacts) -> pl.DataFrame:
    inside = report.collectives.filter(
        pl.col("kept") & pl.col("layer").is_not_null() & ~pl.col("inferred") & (pl.col("phase") == "experts")
    )
    return inside.group_by("step_row", "layer").agg(experts_collective_ns=(pl.col("end") - pl.col("start")).sum())


def _tokens(report: CaptureFacts, sharing: Sharing | None) -> pl.DataFrame:
    cells = report.counts.cells
    shared = None if sharing is None else sharing.of(cells, report.metas)
    tokens = cells["num_tokens"].to_numpy().copy()
    if shared is not None:
        tokens[shared[0].at] = shared[0].num_tokens
    rows = cells.select(*KEY, kernel_tokens=pl.Series(tokens))
    return rows.unique(list(KEY), keep="first", maintain_order=True)
